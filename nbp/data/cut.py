"""From a video file to a clip: the one place where it is decided which frames those are.

Rule: offsets at the clip's rate (`clip_offsets`); a start among the places where the clip fits, chosen by a `Place`;
a file that is shorter than the clip but holds at least half of its frames shows its last one for the rest, a shorter
one is refused. Training, evaluation, tokenizing and the notebook all cut here.
Legend: T frames, H height, W width.
"""

import math
import os
from collections.abc import Callable

import numpy as np

from nbp.data.clips import clip_offsets, num_starts, place_clip, spaced_starts
from nbp.data.video_io import VideoError, probe, read_frames

# From the number of places where a clip fits (0: the file is shorter) to the number of its first frame.
Place = Callable[[int], int]


def first(count: int) -> int:
    """The first frame of the file."""
    return 0


def centre(count: int) -> int:
    """The place in the middle."""
    return spaced_starts(count, 1)[0]


def spaced(clip: int, num_clips: int) -> Place:
    """Place of clip `clip` of `num_clips` evenly spaced ones; the middle for one alone."""
    return lambda count: spaced_starts(count, num_clips)[clip]


def random_place(seed: int, clip: int) -> Place:
    """A place that only the seed, the clip's number in its set and the number of places decide."""
    return lambda count: int(np.random.default_rng([seed, clip]).integers(max(1, count)))


def read_clip(path: str | os.PathLike[str], num_frames: int | None, fps: float | None = None, place: Place = centre,
              reader: str = "pyav", strict: bool = False, hold: bool = True) -> np.ndarray:
    """Read one clip of a video file.

    Args:
        path: video file.
        num_frames: length of the clip; None: the whole file, from its first frame.
        fps: rate of the clip; None: the file's own.
        place: where in the file.
        reader, strict: of `read_frames`.
        hold: False refuses every file that is shorter than the clip, as for generated files, which are clips already.

    Returns:
        uint8 array (T, H, W, 3), RGB.

    Raises:
        VideoError: the file cannot be read or is too short.
    """
    info = probe(path)
    if num_frames is None:
        # 1e-4: 2 s at 30000/1001 frames a second must stay 60 frames.
        num_frames, place = max(1, math.ceil(info.duration_s * (fps or info.fps) - 1e-4)), first
    offsets = clip_offsets(num_frames, info.fps, fps)
    count = num_starts(info.num_frames, offsets)
    if count == 0 and not hold:
        rate = "" if fps is None else f" for {num_frames} at {fps:g} fps (the file has {info.fps:g})"
        raise VideoError(f"has {info.num_frames} frames, {offsets[-1] + 1} are needed{rate}", path)
    try:
        indices = place_clip(info.num_frames, offsets, place(count))
    except ValueError as error:
        raise VideoError(str(error), path) from error
    return read_frames(path, indices, reader, strict)
