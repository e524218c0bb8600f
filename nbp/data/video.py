"""Video files <-> tensors: `nbp.read_video` and `nbp.write_video`.

Legend: T frames, H W pixels.
"""

import math
import os
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nbp.data.clips import check_fps, fit_size, frames_to_video, video_to_frames
from nbp.data.cut import Place, centre, read_clip
from nbp.data.video_io import VideoError, probe
from nbp.data.video_writing import write_animation
from nbp.data.video_writing import write_video as write_file

SUFFIXES = (".mp4", ".webm", ".gif", ".webp", ".mov", ".mkv")
ANIMATIONS = (".gif", ".webp")


def read_video(path: str | os.PathLike[str], num_frames: int | None = None, fps: float | None = None,
               size: int | tuple[int, int] | None = None, start: float | None = None) -> Tensor:
    """Read a video as a player shows it.

    Args:
        path: video file.
        num_frames: how many frames; None: all from `start` to the end. A file that holds at least half of them shows
            its last one for the rest.
        fps: frames per second; None: the file's own. A higher rate repeats frames.
        size: (height, width), or an int for a square. The largest part of that shape is cut out of the centre and
            scaled, so that nothing is distorted. None: as the file has it.
        start: of the first frame, in seconds; None: so that the clip lies in the middle of the file.

    Returns:
        float32 (3, T, H, W) in [0, 1].

    Raises:
        VideoError: the file cannot be read or is too short.
        ValueError: another argument makes no sense.
    """
    shape = size if size is None or isinstance(size, (tuple, list)) else (size, size)
    if shape is not None and not (len(shape) == 2 and all(isinstance(side, Integral) and side >= 1 for side in shape)):
        raise ValueError(f"size must be whole pixels, (height, width) or one number for a square, got {size!r}")
    check_fps(fps)
    place: Place = centre
    if start is not None:
        info = probe(path)
        if not 0 <= start < info.duration_s:
            raise VideoError(f"start is {start:g} s; the video lasts {info.duration_s:g} s", path)
        first = min(math.floor(start * info.fps + 1e-4), info.num_frames - 1)     # the picture that is shown then
        if num_frames is None:
            # 1e-4: 2 s at 30000/1001 frames a second must stay 60 frames.
            num_frames = max(1, math.ceil((info.num_frames - first) / info.fps * (fps or info.fps) - 1e-4))

        def place(count: int) -> int:
            return first
    frames = read_clip(path, num_frames, fps, place)                                      # (T, H, W, 3)
    return frames_to_video(frames if shape is None else fit_size(frames, shape, "aspect"))


def write_video(path: str | os.PathLike[str], video: Tensor | np.ndarray, fps: float) -> None:
    """Write a video that plays in browsers and players.

    Args:
        path: file; its suffix chooses mp4, mov, mkv (h264), webm (VP9), or the pictures gif and webp, which play in
            pages and README files.
        video: float (3, T, H, W) in [0, 1]; values outside are clamped. Or uint8 frames (T, H, W, 3).
        fps: frames per second.

    Raises:
        ValueError: another suffix, shape or dtype; an odd height or width, which h264 and VP9 cannot show everywhere.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: the suffix chooses the format; accepted: {', '.join(SUFFIXES)}")
    frames = to_frames(video)
    if frames.ndim != 4:
        raise ValueError(f"{path}: one clip at a time, got shape {tuple(video.shape)}; video[0] is the first")
    if suffix in ANIMATIONS:
        write_animation(path, frames, fps)
    else:
        write_file(path, frames, fps)


def to_frames(video: Tensor | np.ndarray) -> np.ndarray:
    """Float video ([B,] 3, T, H, W) in [0, 1], or uint8 frames ([B,] T, H, W, 3) -> uint8 frames of that shape.

    Raises:
        ValueError: neither of them.
    """
    if isinstance(video, Tensor) and video.is_floating_point():
        if video.ndim not in (4, 5) or video.shape[-4] != 3:
            raise ValueError(f"video must be float (3, T, H, W) or (B, 3, T, H, W) in [0, 1], got {tuple(video.shape)}")
        return video_to_frames(video)
    frames = np.asarray(video)
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError("video must be a float tensor (3, T, H, W) in [0, 1] or uint8 frames (T, H, W, 3), got "
                         f"{frames.dtype} {frames.shape}")
    return frames


def to_video(video: Tensor | np.ndarray) -> Tensor:
    """What `to_frames` takes -> float32 video ([B,] 3, T, H, W); float video comes back as it is.

    Raises:
        ValueError: neither of them.
    """
    return video if torch.is_tensor(video) and video.is_floating_point() else frames_to_video(to_frames(video))
