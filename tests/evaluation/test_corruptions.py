import numpy as np
import pytest

from nbp.evaluation.corruptions import CORRUPTIONS, corrupted
from nbp.evaluation.features import Clips
from nbp.workflows.sensitivity import MP4_LEVELS, mp4

ALL = {name: (function, levels) for name, (function, levels, _) in CORRUPTIONS.items()} | {"mp4": (mp4, MP4_LEVELS)}


@pytest.fixture
def clip():
    """Smooth moving pattern, uint8 (16,32,32,3)."""
    t, y, x = np.meshgrid(np.arange(16), np.arange(32), np.arange(32), indexing="ij")
    waves = [np.sin((x + phase * t) / 3) + np.cos((y - t) / 4) for phase in (1, 2, 3)]
    return (127 + 50 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("name", ALL)
def test_damage_is_repeatable_and_grows(name, clip):
    function, levels = ALL[name]
    before = clip.copy()
    damaged = [function(clip, level, np.random.default_rng(0)) for level in levels]
    again = function(clip, levels[0], np.random.default_rng(0))
    errors = [np.square(frames.astype(float) - clip).mean() for frames in damaged]
    assert all(frames.shape == clip.shape and frames.dtype == np.uint8 for frames in damaged)
    assert np.array_equal(again, damaged[0]) and np.array_equal(clip, before)
    assert 0 < errors[0] and all(low < high for low, high in zip(errors, errors[1:]))


def test_only_what_is_scored_is_damaged(clip):
    """Otherwise a frozen end that no one looks at would count as no damage."""
    long = Clips.from_array("set", np.stack([clip]))
    damaged = corrupted(long, "frozen", CORRUPTIONS["frozen"][0], 0.25, num_frames=8)
    assert damaged[0].shape[0] == 8 and np.array_equal(damaged[0][:6], clip[:6])
    assert (damaged[0][6:].numpy() == clip[5]).all()
    assert damaged.fingerprint != corrupted(long, "frozen", CORRUPTIONS["frozen"][0], 0.25).fingerprint


def test_time_is_all_that_these_change(clip):
    still = CORRUPTIONS["frozen"][0](clip, 1.0, None)
    assert (still == clip[0]).all()
    half = CORRUPTIONS["frozen"][0](clip, 0.5, None)
    assert np.array_equal(half[:8], clip[:8]) and (half[8:] == clip[7]).all()
    mixed = CORRUPTIONS["shuffled"][0](clip, 4, np.random.default_rng(0))
    for start in range(0, 16, 4):
        assert sorted(f.tobytes() for f in mixed[start:start + 4]) == sorted(f.tobytes() for f in clip[start:start + 4])


def test_shift_moves_by_whole_pixels(clip):
    moved = CORRUPTIONS["shift"][0](clip, 2, None)
    assert np.array_equal(moved[:, :, 2:], clip[:, :, :-2]) and np.array_equal(moved[:, :, 1], clip[:, :, 0])


def test_a_corrupted_set(clip):
    clips = Clips("set", 3, lambda number: clip, "0", [0, 1, 2])
    noisy = corrupted(clips, "noise", CORRUPTIONS["noise"][0], 4)
    assert noisy.name == "set, noise 4" and noisy.labels.tolist() == [0, 1, 2]
    assert np.array_equal(noisy[1], noisy[1]) and not np.array_equal(noisy[0], noisy[1])
    assert noisy.content != clips.content   # a damaged set may be scored against the whole one
    assert noisy.fingerprint != corrupted(clips, "noise", CORRUPTIONS["noise"][0], 8).fingerprint
    floats = Clips("floats", 3, lambda number: clip.astype(np.float32) / 255, "1")
    assert np.array_equal(corrupted(floats, "noise", CORRUPTIONS["noise"][0], 4)[1], noisy[1])


def test_odd_sizes_are_encoded(clip):
    assert mp4(clip[:, :31, :33], 18, None).shape == (16, 31, 32, 3)
