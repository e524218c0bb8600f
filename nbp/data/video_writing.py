"""uint8 frames -> video files.

Legend: T frames, H height, W width.
"""

import os
from fractions import Fraction

import numpy as np

from nbp.system.files import atomic_path

PIXEL_FORMATS = ("yuv420p", "yuv444p")


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float, crf: int = 18,
                pixel_format: str = "yuv420p", preset: str = "medium") -> None:
    """Write an h264 file, atomically: `path` never holds half a video.

    Args:
        path: target; its suffix (".mp4") chooses the container.
        frames: uint8 (T, H, W, 3), RGB.
        fps: frames per second.
        crf: x264 quality, 0 (lossless in YUV) to 51; 18 looks unchanged.
        pixel_format: "yuv420p" plays everywhere; "yuv444p" keeps the colour resolution, which small
            pictures need (Procgen 64x64 at crf 6: 45 dB against 31 dB).
        preset: x264 speed; "superfast" writes 64x64 clips 2.5 times as fast as "medium" into 1.6 times the bytes.

    Raises:
        ValueError: frames of another dtype or shape, or an odd size with "yuv420p".
    """
    import av

    frames = np.asarray(frames)
    _check_frames(path, frames, crf, pixel_format)
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=_fraction(fps), options={"crf": str(crf), "preset": preset})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


def _check_frames(path: str | os.PathLike[str], frames: np.ndarray, crf: int, pixel_format: str) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 of shape (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if pixel_format not in PIXEL_FORMATS:
        raise ValueError(f"{path}: pixel_format is {pixel_format!r}; accepted: {', '.join(PIXEL_FORMATS)}")
    if pixel_format == "yuv420p" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"{path}: yuv420p needs an even height and width, got {frames.shape[1]}x{frames.shape[2]}; "
                         "use yuv444p")
    if not 0 <= crf <= 51:
        raise ValueError(f"{path}: crf is {crf}; accepted: 0 to 51")


def _fraction(fps: float) -> Fraction:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return Fraction(fps).limit_denominator(1001)
