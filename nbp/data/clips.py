"""From frames to clips: which frames, which pixels, which range. Pure functions, no files.

A clip takes its frames at fixed time steps. Short clips: a file with at least half of a clip's frames is
held on its last frame; a shorter one is refused.
Legend: B batch, T frames, H height, W width, C channels.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

RESIZES = ("aspect", "squash")
NTSC = 1.1e-3      # 30 to 30000/1001, in rounded figures


def clip_offsets(num_frames: int, file_fps: float, fps: float | None = None) -> list[int]:
    """Frame numbers of a clip relative to its first frame.

    Args:
        num_frames: length of the clip.
        file_fps: rate of the file.
        fps: rate of the clip; None takes the file's. A rate above the file's repeats frames.

    Returns:
        list of ints, ascending, the first 0: what is on screen i / fps seconds after the first frame, rates of NTSC
        (29.97, 23.976, ...) taken for those that they stand for.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    check_fps(fps)
    step = 1.0 if fps is None else file_fps / fps
    # 29.97 frames a second are meant by 30: at 30 frame 1 follows frame 0, which comes twice else.
    nominal = Fraction(step).limit_denominator(8)
    if abs(step - nominal) < NTSC * step:
        return [number * nominal.numerator // nominal.denominator for number in range(num_frames)]
    return [int(number * step + 1e-4) for number in range(num_frames)]


def check_fps(fps: float | None) -> None:
    """ValueError: neither None nor a rate."""
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number above 0, got {fps}")


def num_starts(file_frames: int, offsets: list[int]) -> int:
    """In how many places of a file of `file_frames` frames a clip fits; 0 if the file is shorter than the clip."""
    return max(0, file_frames - offsets[-1])


def spaced_starts(count: int, num_clips: int) -> list[int]:
    """First frames of `num_clips` clips in the places 0 .. count - 1: the centre for one, else evenly, ends included.

    Where the clips do not fit (count is 0) they start at 0.
    """
    last = max(0, count - 1)
    if num_clips == 1:
        return [last // 2]
    return [round(number * last / (num_clips - 1)) for number in range(num_clips)]


def place_clip(file_frames: int, offsets: list[int], start: int) -> list[int]:
    """Frame numbers of the clip that starts at frame `start`, by the short-clip rule.

    Raises:
        ValueError: the file holds less than half of the clip's frames.
    """
    held = sum(start + offset < file_frames for offset in offsets)
    if 2 * held < len(offsets):
        raise ValueError(f"too short: {file_frames} frames give {held} of {len(offsets)} clip frames, "
                         "at least half are needed")
    return [min(start + offset, file_frames - 1) for offset in offsets]


def fit_square(frames: np.ndarray, resolution: int, resize: str, position: float = 0.5) -> np.ndarray:
    """Bring frames (T, H, W, C) to resolution x resolution; see `fit_size`."""
    return fit_size(frames, (resolution, resolution), resize, position)


def fit_size(frames: np.ndarray, size: tuple[int, int], resize: str, position: float = 0.5) -> np.ndarray:
    """Bring frames to a size.

    Args:
        frames: uint8 array (T, H, W, C).
        size: height and width in pixels.
        resize: "aspect" cuts the largest part with the shape of `size`, then scales it; "squash" scales both sides
            independently, as the official reader does.
        position: where along the longer side that part lies, 0 (left, top) to 1; 0.5 is the centre.

    Returns:
        uint8 array (T, *size, C).

    Raises:
        ValueError: unknown `resize`.
    """
    if resize not in RESIZES:
        raise ValueError(f"data.resize is {resize!r}; accepted: {', '.join(RESIZES)}")
    height, width = frames.shape[1:3]
    if resize == "aspect":
        scale = min(height / size[0], width / size[1])
        cut = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        top, left = round((height - cut[0]) * position), round((width - cut[1]) * position)
        frames = frames[:, top:top + cut[0], left:left + cut[1]]
    if frames.shape[1:3] == tuple(size):
        return frames
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # T C H W
    images = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return images.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def flip(frames: np.ndarray) -> np.ndarray:
    """Mirror frames (T, H, W, C) left to right."""
    return torch.from_numpy(frames).flip(2).numpy()     # copying numpy's mirrored view takes ten times as long


def frames_to_bytes(frames: np.ndarray) -> Tensor:
    """uint8 array (T, H, W, C), or a batch (B, T, H, W, C) -> uint8 tensor (C, T, H, W) or (B, C, T, H, W), a view.

    Raises:
        ValueError: another dtype or number of dimensions.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5):
        raise ValueError(f"frames must be uint8 of shape (T, H, W, C) or (B, T, H, W, C), got {frames.dtype} "
                         f"{frames.shape}")
    # A plain view: einops takes 1% of the time that a clip takes to be decoded.
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -4)           # (B, C, T, H, W)


def frames_to_video(frames: np.ndarray) -> Tensor:
    """uint8 array (T, H, W, C), or a batch (B, T, H, W, C) -> float32 tensor (C, T, H, W) or (B, C, T, H, W) in [0, 1],
    contiguous. ValueError: another dtype or number of dimensions."""
    return frames_to_bytes(frames).contiguous().float().div_(255)


def video_to_frames(video: Tensor) -> np.ndarray:
    """Float tensor (C, T, H, W) or (B, C, T, H, W), nominally in [0, 1] -> uint8 array (T, H, W, C) or with B in front.

    Values are rounded and clamped.

    Raises:
        ValueError: not floating point, not of four or five dimensions, or not finite.
    """
    if not torch.is_floating_point(video) or video.ndim not in (4, 5):
        raise ValueError(f"video must be float of shape (C, T, H, W) or (B, C, T, H, W), got {video.dtype} "
                         f"{tuple(video.shape)}")
    if not torch.isfinite(video).all():
        raise ValueError("video holds NaN or infinity")
    pixels = video.detach().float().mul(255).round().clamp(0, 255).byte()
    return rearrange(pixels, "... c t h w -> ... t h w c").contiguous().cpu().numpy()  # (B, T, H, W, C)
