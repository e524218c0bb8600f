"""Video files -> uint8 frames; the door to the codec libraries, also for writing.

Which picture is frame i, and how long a file is: `video_timeline`. How it is turned and scaled: `video_display`.
Damage raises VideoError, which names the file.
Legend: T frames, H height, W width.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nbp.data.video_display import Pixels
from nbp.data.video_file import VIDEO_SUFFIXES, File, VideoError, open_video
from nbp.data.video_packets import SteadyPackets, packets_by_index, packets_from_key, packets_of, pictures_of
from nbp.data.video_timeline import Timeline, VideoInfo, timeline
from nbp.data.video_writing import write_video

if TYPE_CHECKING:
    import av

__all__ = ["READERS", "VIDEO_SUFFIXES", "VideoError", "VideoInfo", "check_video", "probe", "read_frames", "write_video"]

READERS = ("pyav", "decord")
RESIZING = ("vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1")   # change their size without a key frame

# A seek lands on the key frame at or before (target - margin). AVI stores decoding times, which run ahead of
# presentation by the B-frame delay (at most 3 frames in practice), so a margin of 0 is off by one there.
_SEEK_MARGIN = 8


def probe(path: File) -> VideoInfo:
    """Length, rate and size of a video as it is shown.

    Raises:
        VideoError: missing, empty or not a video.
    """
    return timeline(path).info


def read_frames(path: File, indices: Iterable[int], reader: str = "pyav", strict: bool = False) -> np.ndarray:
    """Decode the asked frames and no more than lies between the key frame before and the last of them.

    Args:
        path: video file.
        indices: frame numbers on the file's own time line, in any order, repeats allowed.
        reader: "pyav" (exact seeks) or "decord" (what the official results were made with), which reads h264, VP8, VP9
            and MJPEG in mp4, mov, Matroska and flv: in others it seeks up to 60 frames wrong. These, and files with
            uneven times, hidden pictures, pictures that are cut, turned, stretched, of more than 8 bits or not all of
            one size, and what decord cannot open, are read by PyAV under either.
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
    if reader not in READERS:
        raise ValueError(f"reader is {reader!r}; accepted: {', '.join(READERS)}")
    line = timeline(path)
    if reader == "decord":
        if strict:
            check_video(path)
        if (frames := _read_decord(path, line, indices)) is not None:
            return frames
    wanted = sorted(set(indices))
    seek = wanted[0] > 2 * _SEEK_MARGIN and not line.from_start
    found = _read_behind_seek(path, line, wanted, strict) if seek else None
    if found is None:
        with open_video(path, strict) as (container, stream):
            found = _collect(_decode(path, container, stream, line, strict), wanted, line) or {}
    if missing := [index for index in wanted if index not in found]:
        raise VideoError(f"ends before frame {missing[0]} (its header announces {line.info.num_frames} frames)", path)
    return line.display.turned(np.stack([found[index] for index in indices]))


def check_video(path: File) -> VideoInfo:
    """Decode a whole file: what `read_frames` may meet anywhere in it.

    Returns:
        `VideoInfo`.

    Raises:
        VideoError: the file cannot be opened, holds damaged frames or ends before the length that it announces.
    """
    line, last = timeline(path), -1
    with open_video(path, strict=True) as (container, stream):
        for number, _ in _decode(path, container, stream, line, strict=True):
            last = max(last, number)
    if (end := _end(line, last)) < line.info.num_frames:
        raise VideoError(f"ends after {end} frames (its header announces {line.info.num_frames})", path)
    return line.info


def _end(line: Timeline, last: int) -> int:
    """How many frames a file has whose last decoded picture has number `last`.

    One picture may lack at the end: Xvid in AVI may count a final, uncoded one, which shows the picture before it.
    """
    return line.num_shown if last >= 0 and line.following(last) >= line.on_screen(line.num_shown - 1) else last + 1


def _read_behind_seek(path: File, line: Timeline, wanted: list[int], strict: bool) -> dict[int, np.ndarray] | None:
    """Frames from the key frame before the first wanted one on; None where only reading from the start can tell."""
    import av

    target = line.first + int((wanted[0] - _SEEK_MARGIN) / line.ticks)
    try:
        with open_video(path, strict) as (container, stream):
            try:
                container.seek(target, stream=stream)
            except (av.error.FFmpegError, OSError):   # not seekable, as what was written to a pipe
                return None
            packets = (packets_by_index if container.format.name == "avi" else packets_from_key)(container, stream)
            return _collect(_decode(path, container, stream, line, strict, packets), wanted, line, exact=True)
    except VideoError:
        # Behind a seek frames may lack what they refer to, which looks like damage; from the start nothing is missing.
        return None


def _decode(path: File, container: "av.container.InputContainer", stream: "av.VideoStream", line: Timeline,
            strict: bool, packets: Iterable["av.Packet"] | None = None) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Yield (frame number, picture) in the order in which they are shown; `packets` are those behind a seek."""
    number = None
    if packets is None:
        packets = SteadyPackets(container, stream) if line.from_start else packets_of(container, stream)
    for frame in pictures_of(packets):
        if strict and frame.is_corrupt:
            raise VideoError(f"the frame at {frame.time} s is damaged", path)
        if (known := line.number(frame)) is not None:
            number = known if number is None else max(number, known)   # no picture is shown before the one before it
        elif number is not None:   # the end of a file lets out pictures without a time
            number = line.following(number)
        else:
            continue
        yield number, frame


def _collect(pictures: Iterable[tuple[int, "av.VideoFrame"]], wanted: list[int], line: Timeline,
             exact: bool = False) -> dict[int, np.ndarray] | None:
    """Pick the frames `wanted` (sorted numbers) from decoded pictures.

    Args:
        exact: take no picture for another one, which was not decoded because it lies too near behind a seek.

    Returns:
        {frame number: uint8 (H, W, 3)}, not yet turned, without the frames that lie behind the end; None if `exact`
        cannot be met.
    """
    pixels = Pixels(line.display)
    found: dict[int, np.ndarray] = {}
    shown: av.VideoFrame | None = None
    last, position = -1, 0
    for number, picture in pictures:
        if shown is None and number > wanted[0] and exact:
            return None
        while wanted[position] < number:
            if exact and line.on_screen(wanted[position]) != last:
                return None
            found[wanted[position]] = pixels(shown or picture)
            position += 1
            if position == len(wanted):
                return found
        shown, last = picture, number
    if shown is None or exact and line.on_screen(wanted[position]) > last + 1:
        return None if exact else found
    end = _end(line, last)
    found |= {index: pixels(shown) for index in wanted[position:] if index < end}
    return found


def _read_decord(path: File, line: Timeline, indices: list[int]) -> np.ndarray | None:
    """Frames (T, H, W, 3) by decord; None for a file that it does not read as it is shown."""
    import decord

    if not line.by_decord or not _one_size(os.path.abspath(path), os.stat(path).st_mtime_ns):
        return None
    if max(indices) >= line.info.num_frames:
        raise VideoError(f"ends before frame {max(indices)} (it has {line.info.num_frames} frames)", path)
    try:
        video = decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0), num_threads=1)
        if len(video) != line.num_shown:
            return None
        frames = video.get_batch(indices).asnumpy()  # (T, H, W, 3)
    # No length in the header, an end that it does not find, a name that is not UTF-8.
    except (decord.DECORDError, RuntimeError, IndexError, UnicodeEncodeError):
        return None
    return frames if frames.shape[1:3] == line.display.shown_size else None


@lru_cache(8192)   # files
def _one_size(path: str, changed: int) -> bool:
    """All pictures have the size of the first, which decord scales the others to in colours of its own."""
    with contextlib.suppress(VideoError), open_video(path) as (container, stream):   # PyAV tells where damage lies
        stream.codec_context.skip_frame = "NONKEY"
        sizes = {(picture.width, picture.height) for picture in pictures_of(packets_of(container, stream))}
        return len(sizes) <= 1 and stream.codec_context.name not in RESIZING
    return False
