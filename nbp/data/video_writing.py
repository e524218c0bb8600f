"""uint8 frames -> video files and moving pictures.

Legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbp.system.files import atomic_path

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer

PIXEL_FORMATS = ("yuv420p", "yuv444p")


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float, crf: int = 18,
                pixel_format: str = "yuv420p", preset: str = "medium") -> None:
    """Write a video file, atomically: `path` never holds half a video.

    Args:
        path: target; its suffix chooses the container and the codec: VP9 in ".webm", else h264.
        frames: uint8 (T, H, W, 3), RGB.
        fps: frames per second.
        crf: quality, 0 (lossless in YUV) to 51; 18 looks unchanged.
        pixel_format: "yuv420p" plays everywhere; "yuv444p" keeps the colour resolution, which small
            pictures need (Procgen 64x64 at crf 6: 45 dB against 31 dB).
        preset: x264 speed; "superfast" writes 64x64 clips 2.5 times as fast as "medium" into 1.6 times the bytes.

    Raises:
        ValueError: frames of another dtype or shape, or an odd size with "yuv420p".
    """
    import av

    frames = np.asarray(frames)
    _check_frames(path, frames, crf, pixel_format)
    webm = Path(path).suffix.lower() == ".webm"
    codec, options = ("libvpx-vp9", {"b": "0"}) if webm else ("libx264", {"preset": preset})
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream(codec, rate=frame_rate(fps), options={"crf": str(crf), **options})
        _set_up(stream, frames, pixel_format)
        _encode(container, stream, frames)
        container.mux(stream.encode(None))


class GrowingVideo:
    """An mp4 file that can be watched while frames are added, as PATH.part until it is closed: fragments, and no
    encoder that looks ahead.

    Args:
        path: target; another file there is replaced at the end.
        fps: frames per second.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self.path, self.fps = path, fps
        self._container: OutputContainer | None = None

    def add(self, frames: np.ndarray) -> None:
        """Write uint8 frames (T, H, W, 3); the first ones give the size."""
        if self._container is None:
            import av

            _check_frames(self.path, frames, 18, "yuv420p")
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            # Absolute: FFmpeg takes what stands before a colon for a protocol.
            options = {"movflags": "frag_every_frame+empty_moov", "fflags": "+flush_packets", "flush_packets": "1"}
            self._container = av.open(f"{os.path.abspath(self.path)}.part", "w", format="mp4", options=options)
            self._stream = self._container.add_stream("libx264", rate=frame_rate(self.fps),
                                                      options={"crf": "18", "tune": "zerolatency"})
            _set_up(self._stream, frames, "yuv420p")
        _encode(self._container, self._stream, frames)

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(f"{os.path.abspath(self.path)}.part", self.path)


def _set_up(stream: av.VideoStream, frames: np.ndarray, pixel_format: str) -> None:
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixel_format
    stream.thread_count = 1


def _encode(container: OutputContainer, stream: av.VideoStream, frames: np.ndarray) -> None:
    import av

    for image in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))


def write_animation(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Write uint8 (T, H, W, 3) as a gif (256 colours a frame) or webp (lossless) that repeats, atomically.

    Every frame lasts the same hundredths of a second, which gif counts in, and at least two, as browsers show one
    hundredth as ten: 15 fps become 14.3, and 50 are the most. In a gif equal frames that follow one another become one
    that lasts as long as they do.
    """
    from PIL import Image

    _check_frames(path, frames, 0, "yuv444p")
    duration = 10 * max(2, round(100 / frame_rate(fps)))
    images = [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as temporary:
        images[0].save(temporary, save_all=True, append_images=images[1:], loop=0, lossless=True, duration=duration)


def _check_frames(path: str | os.PathLike[str], frames: np.ndarray, crf: int, pixel_format: str) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 of shape (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if pixel_format not in PIXEL_FORMATS:
        raise ValueError(f"{path}: pixel_format is {pixel_format!r}; accepted: {', '.join(PIXEL_FORMATS)}")
    if pixel_format == "yuv420p" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"{path}: yuv420p needs an even height and width, got {frames.shape[1]}x{frames.shape[2]}: "
                         "cut off a row or column, take pixel_format=yuv444p of nbp.data.video_writing.write_video, or "
                         "write a gif or webp")
    if not 0 <= crf <= 51:
        raise ValueError(f"{path}: crf is {crf}; accepted: 0 to 51")


def frame_rate(fps: float) -> Fraction:
    """Frames per second as files hold them. ValueError: not a number of at least 0.001."""
    if not 1e-3 <= fps < math.inf:
        raise ValueError(f"fps must be a number, at least 0.001, got {fps}")
    return Fraction(float(fps)).limit_denominator(1001)
