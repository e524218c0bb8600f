"""When each picture of a video file is shown, whatever its header announces.

Frame i of a file is the picture on screen i / fps seconds after its first one, time stamps rounded to that rate. The
rate is the header's, unless most pictures follow one another at another one. The length reaches from the first picture
that is shown to the end of the last, counted over packets: what an edit list hides, other streams, missing lengths and
the place of the start make no difference. A file that was cut off keeps the length that its header announces, so that
frames behind its end are errors. Indexes of mp4 and mov that are plain are taken at their word; all else is counted
once and remembered.
Legend: n pictures.
"""

import contextlib
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbp.data.video_display import Display
from nbp.data.video_file import File, VideoError, open_video

if TYPE_CHECKING:
    import av

REMEMBERED = 8192   # files


@dataclass(frozen=True)
class VideoInfo:
    """A video as it is shown; a file that was cut off holds fewer frames than it announces."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    interlaced: bool = False   # frames are two half pictures woven together, as they are coded


@dataclass(frozen=True)
class Timeline:
    """Where the pictures of a file are."""

    info: VideoInfo
    display: Display
    first: int                    # time stamp of the first picture
    ticks: float                  # frames in a unit of time stamps
    numbers: np.ndarray | None    # frame number of each picture, ascending (n,); None: every frame has its own
    num_shown: int                # frames that the pictures in the file cover
    by_count: bool                # time stamps of decoded pictures tell nothing

    def number(self, time: int) -> int:
        """Frame number of the picture with a time stamp."""
        return round((time - self.first) * self.ticks)

    def following(self, number: int) -> int:
        """Number of the picture behind the one with this number."""
        if self.numbers is None:
            return number + 1
        place = int(np.searchsorted(self.numbers, number, "right"))
        return int(self.numbers[place]) if place < len(self.numbers) else number + 1

    def on_screen(self, index: int) -> int:
        """Number of the picture that frame `index` shows."""
        if self.numbers is None:
            return index
        return int(self.numbers[max(0, int(np.searchsorted(self.numbers, index, "right")) - 1)])


class Packets(NamedTuple):
    """What the packets of a stream say about its shown pictures, in units of time stamps."""

    picture: "av.VideoFrame"   # the first one, decoded
    times: np.ndarray          # int64 (n,), ascending
    end: int                   # of the last one; its start where its duration is unknown


def timeline(path: File) -> Timeline:
    """The time line of a video file, read once for each state of the file.

    Raises:
        VideoError: missing, empty or not a video.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise VideoError("no such file", path) from error
    return _timeline(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(REMEMBERED)
def _timeline(path: str, size: int, changed: int) -> Timeline:
    with open_video(path) as (container, stream):
        rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base
        if not rate or not unit:
            raise VideoError("the file states no frame rate", path)
        by_count, index = container.format.name == "avi", _index(stream)
        numbers = None
        if _is_plain(container, stream, index, float(rate * unit)):
            picture = _read_packets(path, container, stream, by_count, only_first=True).picture
            num_shown = num_frames = stream.frames
        else:
            announced = stream.frames / rate   # before the rate may change: AVI's length in seconds
            picture, times, end = _read_packets(path, container, stream, by_count)
            rate = _shown_rate(times, rate, stream.guessed_rate, unit)
            numbers = np.rint((times - times[0]) * float(rate * unit)).astype(np.int64)
            num_shown = max(round((end - int(times[0])) * float(rate * unit)), int(numbers[-1]) + 1)
            num_frames = max(num_shown, _promised(container, stream, index, times, num_shown, rate, announced))
            if by_count and len(index) > 1:    # whole, so the chunks that lack at its end hold the last picture
                num_shown = num_frames
            numbers = None if np.array_equal(numbers, np.arange(num_shown)) else numbers
        display = Display.of(stream, picture)
        height, width = display.shown_size
        info = VideoInfo(num_frames, float(rate), width, height, num_frames / float(rate), picture.interlaced_frame)
        return Timeline(info, display, picture.pts or 0, float(rate * unit), numbers, num_shown, by_count)


def _index(stream: "av.VideoStream") -> list[tuple[int, bool]]:
    """(decoding time, whether an edit list hides it) of each packet, as far as the container lists them."""
    return [(entry.timestamp, entry.is_discard) for entry in stream.index_entries]


def _is_plain(container: "av.container.InputContainer", stream: "av.VideoStream", index: list[tuple[int, bool]],
              ticks: float) -> bool:
    """The index is that of a file with one picture every 1 / rate seconds, none of them hidden."""
    if len(index) < 2 or len(index) != stream.frames or any(hidden for _, hidden in index):
        return False
    steps = np.diff(np.array([time for time, _ in index]))
    if steps[0] <= 0 or (steps != steps[0]).any() or abs(steps[0] * ticks - 1) > 1e-3:
        return False
    length = (stream.duration or 0) * ticks
    return container.format.name == "avi" or "mp4" in container.format.name and abs(length - len(index)) < 0.5


def _read_packets(path: File, container: "av.container.InputContainer", stream: "av.VideoStream", by_count: bool,
                  only_first: bool = False) -> Packets:
    """Decode the first picture and go through all packets, or only up to it."""
    picture, packets = None, []
    for packet in container.demux(stream):
        if picture is None and (frames := packet.decode()):
            picture = frames[0]
        time = packet.dts if by_count or packet.pts is None else packet.pts
        if time is not None and packet.size and not packet.is_discard:
            packets.append((time, packet.duration or 0))
        if picture is not None and only_first:
            break
    if picture is None or picture.pts is None:
        raise VideoError("no picture in it can be decoded", path)
    # Before the first picture lie packets that cannot be decoded: what they refer to was cut off.
    packets = [packet for packet in packets if by_count or only_first or packet[0] >= picture.pts]
    times = np.unique(np.array([time for time, _ in packets], np.int64))
    last, duration = max(packets, default=(picture.pts, 0))
    return Packets(picture, times if len(times) else np.array([picture.pts]), last + duration)


def _shown_rate(times: np.ndarray, stated: Fraction, guessed: Fraction | None, unit: Fraction) -> Fraction:
    """Frames a second: as stated, unless most pictures follow one another at another rate."""
    steps = np.diff(times)
    if len(steps) < 2:
        return stated
    middle = float(np.median(steps))
    if abs(middle * stated * unit - 1) < 0.05:
        return stated
    usual = steps[np.abs(steps - middle) <= 0.1 * middle]
    if 2 * len(usual) >= len(steps):
        found = 1 / (float(usual.mean()) * unit)
        near = [rate for rate in (guessed, stated) if rate and abs(rate / found - 1) < 0.02]
        return near[0] if near else Fraction(found).limit_denominator(1001)
    mean = Fraction(1 / (float(steps.mean()) * unit)).limit_denominator(1001)
    return stated if stated < 2 * mean else mean   # live recordings state the rate of their clock, 1000 a second


def _promised(container: "av.container.InputContainer", stream: "av.VideoStream", index: list[tuple[int, bool]],
              times: np.ndarray, num_shown: int, rate: Fraction, announced: Fraction) -> int:
    """Frames that a file was meant to hold: more than it shows where it was cut off. 0: it does not say.

    Lengths of whole containers are no promise: they may be those of the sound.
    """
    if container.format.name == "avi":
        return round(announced * rate)
    lacking = sum(not hidden for _, hidden in index) - len(times)
    if "mp4" in container.format.name and lacking > 1:
        return num_shown + lacking
    hours, minutes, seconds = (stream.metadata.get("DURATION", "").split(":") + ["", "", ""])[:3]
    with contextlib.suppress(ValueError):
        end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        frames = round((end - float(int(times[0]) * (stream.time_base or 0))) * rate)
        return frames if frames > num_shown + 2 else 0   # tags are rounded, and some count from the start of the file
    return 0
