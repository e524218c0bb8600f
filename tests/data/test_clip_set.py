import tracemalloc

import numpy as np
import pytest

from nbp.data import clip_set
from nbp.workflows.clip_sources import open_clips


def some(count, seed=0, size=16):
    return np.random.default_rng(seed).integers(0, 256, (count, 9, size, size, 3), dtype=np.uint8)


def fill(parts, video, ranks=3, batch=4):
    """Add clips as several ranks do, each its own ones and in the order of the highest rank first."""
    for rank in reversed(range(ranks)):
        mine = np.arange(rank, len(video), ranks)
        for numbers in np.split(mine, range(batch, len(mine), batch)):
            parts.add(numbers.tolist(), video=video[numbers], label=numbers, path=np.array([f"p{n}" for n in numbers]))


def test_parts_of_several_ranks_are_merged_in_order(tmp_path):
    video, parts = some(131), clip_set.Parts(tmp_path, {"seed": 0})
    fill(parts, video[:120])
    (tmp_path / "parts/.0000120.half.npz").write_bytes(b"PK")  # another rank is writing it, or was killed on the way
    with pytest.raises(ValueError, match="holds 120 of 131 clips; run the command again"):
        parts.merge(131)
    assert parts.done() == set(range(120))
    fill(parts, video, ranks=2)
    parts.merge(131)
    arrays = clip_set.load(tmp_path)
    assert np.array_equal(arrays["video"], video) and arrays["label"].tolist() == list(range(131))
    assert arrays["path"].tolist() == [f"p{n}" for n in range(131)] and not (tmp_path / "parts").exists()
    assert parts.done() == set(range(131))
    with pytest.raises(ValueError, match=r"made with other settings \(seed differ\)"):
        clip_set.Parts(tmp_path, {"seed": 1})


def test_arrays_are_read_as_they_were_written_packed_or_not(tmp_path):
    arrays = {"video": some(3), "label": np.arange(3), "path": np.array(["a", "bcd", ""]), "none": np.zeros((0, 2)),
              "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "number": np.array(5)}
    clip_set.write_arrays(tmp_path / "stored.npz", arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    for name in ("stored.npz", "packed.npz"):
        read = clip_set.read_arrays(tmp_path / name)
        assert list(read) == list(arrays)
        for key in arrays:
            assert read[key].dtype == arrays[key].dtype and np.array_equal(read[key], arrays[key]), key
    assert isinstance(clip_set.read_arrays(tmp_path / "stored.npz")["video"], np.memmap)
    np.savez(tmp_path / "objects.npz", a=np.array([{}, 1], dtype=object))
    with pytest.raises(ValueError, match="objects.npz is not an npz file of plain arrays"):
        clip_set.read_arrays(tmp_path / "objects.npz")


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    """Merging, opening and reading 16 times as many clips."""
    peaks = []
    for count in (64, 1024):
        folder, parts = tmp_path / str(count), clip_set.Parts(tmp_path / str(count), {})
        for start in range(0, count, 8):
            numbers = range(start, start + 8)
            parts.add(list(numbers), video=some(8, start, size=32), label=np.array(numbers))
        tracemalloc.start()
        parts.merge(count)
        clips = open_clips(folder)
        assert sum(int(clips[number].sum() > 0) for number in range(count)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"peak memory: {peaks[0] / 2 ** 20:.2f} MiB at 64 clips, {peaks[1] / 2 ** 20:.2f} MiB at 1024")
    assert peaks[1] - peaks[0] < 2 ** 20   # a clip takes 27 kB, so that all would take 27 MB
