import numpy as np
import pytest
import torch
from videos import numbered

from nbp.data.clips import (
    clip_offsets,
    fit_square,
    flip,
    frames_to_video,
    num_starts,
    place_clip,
    spaced_starts,
    video_to_frames,
)


def test_offsets_follow_time_stamps():
    assert clip_offsets(4, 25.0) == [0, 1, 2, 3]
    assert clip_offsets(5, 25.0, 8) == [0, 3, 6, 9, 12]
    assert clip_offsets(4, 10.0, 20) == [0, 0, 1, 1]
    assert clip_offsets(300, 30000 / 1001, 30000 / 1001) == list(range(300))
    assert clip_offsets(17, 24.0, 8) == list(range(0, 51, 3))
    for rate in (30000 / 1001, 29.97):          # what 30 stands for
        assert [clip_offsets(5, rate, fps) for fps in (30, 15, 10, 60)] == [
            [0, 1, 2, 3, 4], [0, 2, 4, 6, 8], [0, 3, 6, 9, 12], [0, 0, 1, 1, 2]]
    assert clip_offsets(17, 24000 / 1001, 24) == list(range(17))
    assert clip_offsets(5, 60000 / 1001, 24) == [0, 2, 5, 7, 10]
    assert clip_offsets(4, 8.0, 25) == [0, 0, 0, 0] and clip_offsets(26, 25.0, 24)[-2:] == [25, 26]
    with pytest.raises(ValueError, match="fps must be a number above 0, got 0"):
        clip_offsets(4, 25.0, 0)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        clip_offsets(0, 25.0)


def test_places_of_clips():
    offsets = [0, 2, 4]
    assert [num_starts(count, offsets) for count in (4, 5, 8)] == [0, 1, 4]
    assert spaced_starts(9, 1) == [4] and spaced_starts(0, 1) == [0]
    assert spaced_starts(9, 3) == [0, 4, 8] and spaced_starts(1, 2) == [0, 0]
    assert place_clip(8, offsets, 3) == [3, 5, 7]


def test_short_clips_hold_their_last_frame_down_to_half():
    assert place_clip(5, list(range(9)), 0) == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    with pytest.raises(ValueError, match="too short: 4 frames give 4 of 9 clip frames"):
        place_clip(4, list(range(9)), 0)
    assert place_clip(1, [0], 0) == [0]


def test_aspect_keeps_proportions_and_squash_does_not():
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, 40:] = 200  # right half
    assert fit_square(frames, 20, "aspect", 0.0).max() == 0
    assert fit_square(frames, 20, "aspect", 1.0).min() == 200
    centre = fit_square(frames, 20, "aspect")
    assert centre[:, :, :9].max() == 0 and centre[:, :, 11:].min() == 200
    squashed = fit_square(frames, 20, "squash")
    assert squashed.shape == (2, 20, 20, 3) and squashed.dtype == np.uint8
    assert np.array_equal(squashed[0, 0, :, 0] > 100, np.arange(20) >= 10)
    with pytest.raises(ValueError, match="data.resize is 'pad'; accepted: aspect, squash"):
        fit_square(frames, 20, "pad")


def test_fitting_size_is_untouched_and_upscaling_works():
    frames = numbered(2, 32, 32)
    assert np.array_equal(fit_square(frames, 32, "aspect"), frames)
    tall = fit_square(numbered(2, 48, 24), 64, "aspect")
    assert tall.shape == (2, 64, 64, 3)


def test_flip_mirrors_columns():
    frames = numbered(2)
    assert np.array_equal(flip(frames)[:, :, 0], frames[:, :, -1]) and np.array_equal(flip(flip(frames)), frames)


def test_frames_and_video_round_trip():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3).repeat(2, 0)
    video = frames_to_video(frames)
    assert video.shape == (3, 2, 16, 16) and video.dtype == torch.float32
    assert (video.min(), video.max()) == (0, 1)
    assert np.array_equal(video_to_frames(video), frames)
    batch = np.stack([frames, frames[::-1]])
    assert torch.equal(frames_to_video(batch)[0], video)
    assert np.array_equal(video_to_frames(frames_to_video(batch)), batch)
    assert np.array_equal(video_to_frames(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1)).ravel(), [0, 128, 255])


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(ValueError, match="frames must be uint8 of shape"):
        frames_to_video(frames)


@pytest.mark.parametrize("video, message", [
    (torch.zeros(3, 2, 4, 4, dtype=torch.uint8), "video must be float of shape"),
    (torch.zeros(3, 4, 4), "video must be float of shape"),
    (torch.full((3, 1, 2, 2), float("nan")), "NaN or infinity"),
])
def test_video_of_another_kind_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        video_to_frames(video)
