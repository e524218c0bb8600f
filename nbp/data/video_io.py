"""Video files -> uint8 frames; the door to the codec libraries, also for writing.

Frame i of a file is the picture on screen i / fps seconds after its first one, time stamps rounded to that
rate. At a constant frame rate it is the i-th decoded frame, however mp4, mov, mkv, webm or avi is coded;
files with dropped frames still get a constant-rate time line. Damage raises VideoError, which names the file.
Legend: T frames, H height, W width.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nbp.data.video_writing import write_video

if TYPE_CHECKING:
    import av

File = str | os.PathLike[str]

__all__ = ["READERS", "VideoError", "VideoInfo", "check_video", "probe", "read_frames", "write_video"]

READERS = ("pyav", "decord")

# A seek lands on the key frame at or before (target - margin). AVI stores decoding times, which run ahead of
# presentation by the B-frame delay (at most 3 frames in practice), so a margin of 0 is off by one there.
_SEEK_MARGIN = 8


class VideoError(ValueError):
    """A video file that cannot be used; the text names it, and so does `path`.

    `path` is optional only because DataLoader rebuilds the exception of a worker from its text.
    """

    def __init__(self, text: str, path: File | None = None) -> None:
        super().__init__(text if path is None else f"{path}: {text}")
        self.path = None if path is None else str(path)


@dataclass(frozen=True)
class VideoInfo:
    """What the container says; a truncated file may hold fewer frames than it announces."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float


def probe(path: File) -> VideoInfo:
    """Read the header of a video file.

    Raises:
        VideoError: missing, empty or not a video.
    """
    with _open(path) as (container, stream):
        return _info(path, container, stream)


def read_frames(path: File, indices: Iterable[int], reader: str = "pyav", strict: bool = False) -> np.ndarray:
    """Decode the asked frames and no more than lies between the key frame before and the last of them.

    Args:
        path: video file.
        indices: frame numbers on the file's own time line, in any order, repeats allowed.
        reader: "pyav" (exact seeks) or "decord" (what the official results were made with; seeks up to two
            frames wrong in some Xvid files).
        strict: refuse damage that the decoder would otherwise paint over, in the frames that it decodes for this.

    Returns:
        uint8 array (T, H, W, 3), RGB, in the order of `indices`.

    Raises:
        VideoError: the file is missing, not a video, damaged or ends before an asked frame.
        ValueError: unknown reader, no index, or a negative one.
    """
    indices = [int(index) for index in indices]
    if not indices or min(indices) < 0:
        raise ValueError(f"{path}: frame indices must be a non-empty list of numbers >= 0, got {indices}")
    if reader == "pyav":
        return _read_strictly(path, indices) if strict else _read_pyav(path, indices)
    if reader == "decord":
        if strict:
            check_video(path)
        return _read_decord(path, indices)
    raise ValueError(f"reader is {reader!r}; accepted: {', '.join(READERS)}")


def check_video(path: File) -> VideoInfo:
    """Decode a whole file: what `read_frames` may meet anywhere in it.

    Returns:
        `VideoInfo`.

    Raises:
        VideoError: the file cannot be opened, holds damaged frames or ends before the length that it announces.
    """
    with _open(path, strict=True) as (container, stream):
        info, end, pts0, number_of = _info(path, container, stream), -1, None, None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise VideoError(f"frame {end + 1} is damaged", path)
            if frame.pts is not None:
                pts0 = frame.pts if pts0 is None else pts0
                number_of = number_of or _numbering(container, stream, info, pts0)
                end = max(end, number_of(frame))
    if end + 1 < info.num_frames - 1:  # one frame of grace, as in reading
        raise VideoError(f"ends after {end + 1} frames (its header announces {info.num_frames})", path)
    return info


@contextlib.contextmanager
def _open(path: File, strict: bool = False) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    """Yield (container, video stream), turning every codec error inside the block into VideoError.

    With `strict` the decoder reports damage that it would otherwise paint over.
    """
    import av

    if not os.path.isfile(path):
        raise VideoError("no such file", path)
    if os.path.getsize(path) == 0:
        raise VideoError("the file is empty", path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("the file holds no video stream", path)
            stream = container.streams.video[0]
            stream.thread_count = 1  # DataLoader workers are the parallelism
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be decoded: {error}", path) from error


def _info(path: File, container: "av.container.InputContainer", stream: "av.VideoStream") -> VideoInfo:
    fps = stream.average_rate or stream.guessed_rate
    if not fps or not stream.time_base:
        raise VideoError("the file states no frame rate", path)
    num_frames = stream.frames
    if not num_frames and stream.duration:
        num_frames = round(stream.duration * stream.time_base * fps)
    if not num_frames and container.duration:
        num_frames = round(container.duration * fps / 1_000_000)
    if not num_frames or not stream.width or not stream.height:
        raise VideoError("the file states no length or no picture size", path)
    return VideoInfo(num_frames, float(fps), stream.width, stream.height, num_frames / float(fps))


def _read_strictly(path: File, indices: list[int]) -> np.ndarray:
    try:
        return _read_pyav(path, indices, strict=True)
    except VideoError:
        # Behind a seek frames may lack what they refer to, which looks like damage; from the start nothing is missing.
        return _read_pyav(path, indices, strict=True, seek=False)


def _read_pyav(path: File, indices: list[int], strict: bool = False, seek: bool = True) -> np.ndarray:
    wanted = sorted(set(indices))
    found = None
    with _open(path, strict) as (container, stream):
        info = _info(path, container, stream)
        frames = _decode(path, container, stream, strict)
        first = next(frames, None)
        if first is None or first.pts is None:
            raise VideoError("no frame can be decoded", path)
        if wanted[0] <= 2 * _SEEK_MARGIN or not seek:
            found = _collect(itertools.chain([first], frames), wanted, _numbering(container, stream, info, first.pts))
        else:
            ticks = (wanted[0] - _SEEK_MARGIN) / (info.fps * float(stream.time_base or 0))
            container.seek(first.pts + int(ticks), stream=stream)
            found = _collect(_decode(path, container, stream, strict), wanted,
                             _numbering(container, stream, info, first.pts))
    if found is None:  # the seek landed too late, as MPEG program streams without an index do: read from the start
        with _open(path, strict) as (container, stream):
            found = _collect(_decode(path, container, stream, strict), wanted,
                             _numbering(container, stream, info, first.pts))
    found = found or {}
    missing = [index for index in wanted if index not in found]
    if missing:
        raise VideoError(f"ends before frame {missing[0]} (its header announces {info.num_frames} frames)", path)
    return np.stack([found[index] for index in indices])


def _decode(path: File, container: "av.container.InputContainer", stream: "av.VideoStream",
            strict: bool) -> Iterator["av.VideoFrame"]:
    for frame in container.decode(stream):
        if strict and frame.is_corrupt:
            raise VideoError(f"the frame at {frame.time} s is damaged", path)
        yield frame


def _numbering(container: "av.container.InputContainer", stream: "av.VideoStream", info: VideoInfo,
               pts0: int) -> Callable[["av.VideoFrame"], int]:
    """Function from the next decoded frame to its number.

    AVI stores no presentation times and what FFmpeg guesses is out of order for h264 inside it. Each of its
    chunks is one tick, so there only the frame behind the seek, a key frame, is placed by time.
    """
    ticks = float(stream.time_base or 0) * info.fps
    if container.format.name != "avi":
        return lambda frame: round(((frame.pts or 0) - pts0) * ticks)
    counter = None

    def count(frame: "av.VideoFrame") -> int:
        nonlocal counter
        counter = round(((frame.pts or 0) - pts0) * ticks) if counter is None else counter + 1
        return counter

    return count


def _collect(frames: Iterable["av.VideoFrame"], wanted: Sequence[int],
             number_of: Callable[["av.VideoFrame"], int]) -> dict[int, np.ndarray] | None:
    """Pick the frames `wanted` (sorted numbers) from decoded frames; None if those begin behind the first wanted one.

    Returns:
        {frame number: uint8 (H, W, 3)}, without the frames that lie behind the end.
    """
    from av.video.reformatter import VideoReformatter

    converter = VideoReformatter()  # shared: setting up a colour conversion costs more than one small frame
    found: dict[int, np.ndarray] = {}
    shown: av.VideoFrame | None = None
    end = position = 0
    for frame in frames:
        if frame.pts is None:
            continue
        number = number_of(frame)
        if shown is None and number > wanted[0]:
            return None
        while shown is not None and wanted[position] < number:
            found[wanted[position]] = converter.reformat(shown, format="rgb24", threads=1).to_ndarray()
            position += 1
            if position == len(wanted):
                return found
        shown, end = frame, number
    # One frame of grace: Xvid in AVI may count a final, uncoded frame, which shows the picture before it.
    while shown is not None and position < len(wanted) and wanted[position] <= end + 1:
        found[wanted[position]] = converter.reformat(shown, format="rgb24", threads=1).to_ndarray()
        position += 1
    return found


def _read_decord(path: File, indices: list[int]) -> np.ndarray:
    import decord

    probe(path)  # clear errors for missing, empty and foreign files: decord's own do not say which
    try:
        video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if max(indices) >= len(video):
            raise VideoError(f"ends before frame {max(indices)} (it has {len(video)} frames)", path)
        return video.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise VideoError(f"cannot be decoded by decord: {str(error).splitlines()[0]}", path) from error
