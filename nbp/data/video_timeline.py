"""When each picture of a video file is shown, whatever its header announces.

Frame i of a file is the picture on screen i / fps seconds after its first one, time stamps rounded to that rate. The
rate is the header's, unless most pictures follow one another at another one. The length reaches from the first picture
that is shown to the end of the last, counted over packets: what an edit list hides, other streams, missing lengths and
the place of the start make no difference. A file that was cut off keeps the length that its header announces, so that
frames behind its end are errors. Indexes of mp4 and mov that are plain, which both ends of the file are asked for, are
taken at their word; all else is counted once and remembered. Where pictures come out of the decoder with falling time
stamps they are shown in its order, by decoding times, as in FFmpeg's own program.
Legend: n pictures.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbp.data.video_display import Display
from nbp.data.video_file import File, VideoError, open_video
from nbp.data.video_packets import SteadyPackets, held_back, packets_of, pictures_of, seeks_by_decord

if TYPE_CHECKING:
    import av

REMEMBERED = 8192       # files
TAIL = 32               # packets; more than any codec's pictures are out of order
UNKNOWN = 2 ** 30       # frames in the header of an AVI file that was written to a pipe


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
    by_chunk: bool                # AVI, copies of it: a picture is shown when the chunk arrives that lets it out
    from_start: bool              # behind a seek nothing tells which picture it is
    by_decord: bool               # decord reads it as it is shown

    def number(self, picture: "av.VideoFrame") -> int | None:
        """Frame number of a decoded picture; None for one without a time stamp."""
        time = shown_at(picture, self.by_chunk)
        return None if time is None else math.floor((time - self.first) * self.ticks + 0.5)

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


def shown_at(picture: "av.VideoFrame", by_chunk: bool) -> int | None:
    """Time stamp of a decoded picture; AVI holds only those of the chunks."""
    return picture.dts if by_chunk else picture.pts


class Packets(NamedTuple):
    """What the packets of a stream say about its shown pictures, in units of time stamps."""

    picture: "av.VideoFrame"   # the first one, decoded
    times: np.ndarray          # int64 (n,), ascending
    delay: int                 # pictures that the decoder holds back
    start: int                 # of the chunk that holds the first one
    end: int                   # of the last one; its start where its duration is unknown
    num_packets: int           # with those that cannot be decoded or that hold nothing
    astray: int                # how far the time of a packet lies from its place among them
    moved: bool                # the file's clock jumps


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
        if _is_plain(container, stream, _index(stream), float(rate * unit)) and (
                picture := _plain_picture(path, container, stream, float(rate * unit))):
            return _line(stream, picture, rate, stream.frames, None, stream.frames, container.format.name == "avi")
    with open_video(path) as (container, stream):
        return _counted(path, container, stream, rate, unit)


def _line(stream: "av.VideoStream", picture: "av.VideoFrame", rate: Fraction, num_frames: int,
          numbers: np.ndarray | None, num_shown: int, by_chunk: bool, from_start: bool = False) -> Timeline:
    display = Display.of(stream, picture)
    height, width = display.shown_size
    info = VideoInfo(num_frames, float(rate), width, height, num_frames / float(rate), picture.interlaced_frame)
    ticks = float(rate * (stream.time_base or 1))
    kind = stream.container.format.name
    # The palette lies at the beginning; program streams have no time for many a picture behind a seek.
    from_start = from_start or picture.format.name == "pal8" or kind == "mpeg"
    shallow = all(component.bits <= 8 for component in picture.format.components)   # decord rounds others differently
    return Timeline(info, display, shown_at(picture, by_chunk) or 0, ticks, numbers, num_shown, by_chunk, from_start,
                    numbers is None and display.plain and shallow and seeks_by_decord(stream))


def _counted(path: File, container: "av.container.InputContainer", stream: "av.VideoStream", rate: Fraction,
             unit: Fraction) -> Timeline:
    """The time line of a file by all of its packets."""
    by_chunk, index = container.format.name == "avi", _index(stream)
    announced = stream.frames / rate   # before the rate may change: AVI's length in seconds
    packets = _read_packets(path, container, stream, by_chunk)
    b_frames = stream.codec_context.has_b_frames
    disorder = not by_chunk and packets.astray > (TAIL // 2 if b_frames else 0)
    if disorder or not by_chunk and b_frames and ("mp4" in container.format.name or not packets.astray):
        by_chunk = _runs_back(path, None if disorder else TAIL)
    if by_chunk and container.format.name != "avi":
        with open_video(path) as again:
            packets = _read_packets(path, *again, by_chunk)
    times = packets.times
    step = int(np.diff([*times, packets.end])[0])
    if not stream.average_rate and len(times) < 3 and step:    # else FFmpeg guesses the rate of the clock
        rate = Fraction(1 / (step * unit)).limit_denominator(1001)
    rate = _shown_rate(times, rate, stream.guessed_rate, unit)
    numbers = np.floor((times - times[0]) * float(rate * unit) + 0.5).astype(np.int64)
    num_shown = max(round((packets.end - int(times[0])) * float(rate * unit)), int(numbers[-1]) + 1)
    num_frames = max(num_shown, _promised(container, stream, index, packets, num_shown, rate, announced))
    if container.format.name == "avi" and len(index) > 1:    # whole: chunks that lack at its end hold the last picture
        num_shown = num_frames
    if len(numbers) == num_shown and np.array_equal(numbers, np.arange(num_shown)):
        numbers = None
    return _line(stream, packets.picture, rate, num_frames, numbers, num_shown, by_chunk, packets.moved or disorder)


def _index(stream: "av.VideoStream") -> list[tuple[int, bool]]:
    """(decoding time, whether an edit list hides it) of each packet, as far as the container lists them."""
    return [(entry.timestamp, entry.is_discard) for entry in stream.index_entries]


def _is_plain(container: "av.container.InputContainer", stream: "av.VideoStream", index: list[tuple[int, bool]],
              ticks: float) -> bool:
    """The index is that of a file with one picture every 1 / rate seconds, none of them hidden."""
    if len(index) < 2 or len(index) != stream.frames or any(hidden for _, hidden in index):
        return False
    steps = np.diff([time for time, _ in index])
    if steps[0] <= 0 or (steps != steps[0]).any() or abs(steps[0] * ticks - 1) > 1e-3:
        return False
    length = (stream.duration or 0) * ticks
    return container.format.name == "avi" or "mp4" in container.format.name and abs(length - len(index)) < 0.5


def _plain_picture(path: File, container: "av.container.InputContainer", stream: "av.VideoStream",
                   ticks: float) -> "av.VideoFrame | None":
    """The first picture of a file with a plain index; None if pictures lack at an end, where it was cut."""
    by_chunk = container.format.name == "avi"
    head = _read_packets(path, container, stream, by_chunk, only_first=True)
    if by_chunk:
        return head.picture if head.num_packets == head.delay + 1 else None
    container.seek(stream.index_entries[-min(TAIL, stream.frames)].timestamp, stream=stream, any_frame=True)
    tail = [packet.pts for packet in packets_of(container, stream) if packet.pts is not None]
    length = (max(tail, default=0) - head.times[0]) * ticks + 1
    if head.num_packets != len(head.times) or abs(length - stream.frames) >= 0.5:
        return None
    astray, b_frames = _astray(tail), stream.codec_context.has_b_frames
    if astray > (TAIL // 2 if b_frames else 0) or b_frames and not astray and _runs_back(path):
        return None
    return head.picture


def _astray(times: list[int]) -> int:
    """How far the time of a packet lies from its place in their order; half of TAIL is more than any codec does."""
    return int(np.abs(np.argsort(times, kind="stable") - np.arange(len(times))).max(initial=0))


def _runs_back(path: File, num_pictures: int | None = TAIL) -> bool:
    """Pictures come out of the decoder with falling time stamps, as copies of AVI files have them, whose times are
    those of chunks; there FFmpeg's own program goes by decoding times as well."""
    times: list[int] = []
    with contextlib.suppress(VideoError), open_video(path) as (container, stream):   # as far as there is no damage
        for picture in itertools.islice(pictures_of(packets_of(container, stream)), num_pictures):
            times += [] if picture.pts is None else [picture.pts]
    return times != sorted(times)


def _read_packets(path: File, container: "av.container.InputContainer", stream: "av.VideoStream", by_chunk: bool,
                  only_first: bool = False) -> Packets:
    """Decode the first picture and go through all packets, or only up to it."""
    seen: list[tuple[int, int, bool]] = []   # (time, duration, whether it holds something)
    packets = SteadyPackets(container, stream)

    def noted() -> Iterator["av.Packet"]:
        for packet in packets:
            time = packet.dts if by_chunk or packet.pts is None else packet.pts
            if time is not None and not packet.is_discard:
                seen.append((time, packet.duration or 0, packet.size > 0))
            yield packet

    rest = noted()
    picture = next(pictures_of(rest), None)
    delay = held_back(stream) if by_chunk else 0
    if not only_first:
        sum(1 for _ in rest)
    if picture is None:
        raise VideoError("no picture in it can be decoded", path)
    if (first := shown_at(picture, by_chunk)) is None:
        raise VideoError(f"it does not say when its pictures are shown; `ffmpeg -i {path} NEW.mp4` makes a file that "
                         "does", path)
    # Before the first picture lie packets that cannot be decoded: what they refer to was cut off.
    shown = [(time, duration) for time, duration, full in seen if full and time >= first]
    last, duration = max(shown, default=(first, 0))
    if by_chunk and len(shown) > 1:   # chunks may be shorter than pictures last
        duration = max(duration, int(np.quantile(np.diff([time for time, _ in shown]), 0.25)))
    # Pictures that the end of the file lets out: spaced as the chunks until the first one comes, mirrored.
    leads = [first - time for time, _, full in seen if full and time < first][::-1][:delay]
    if len(leads) < delay or max(leads, default=0) > 2 * delay * duration:   # the clock jumps behind the first chunk
        leads = [step * duration for step in range(1, delay + 1)]
    times = np.unique(np.array([first, *(time for time, _ in shown), *(last + lead for lead in leads)], np.int64))
    return Packets(picture, times, delay, first - max(leads, default=0), int(times[-1]) + duration, len(seen),
                   _astray([time for time, *_ in seen]), packets.moved)


def _shown_rate(times: np.ndarray, stated: Fraction, guessed: Fraction | None, unit: Fraction) -> Fraction:
    """Frames a second: the rate on whose grid the pictures lie, which drops and holds leave as it is; else their mean.

    Headers state the mean where pictures were dropped, and some the rate of their clock.
    """
    if len(steps := np.diff(times)) < 2:
        return stated
    step = float(np.quantile(steps, 0.25, method="lower"))
    for _ in range(3):   # of single pictures, refined over those that lie a few of them apart, but for breaks
        short = steps[(steps <= 4.5 * step) & (np.abs(steps / step - np.rint(steps / step)) < 0.3)]
        step = float(short.sum() / np.maximum(1, np.rint(short / step)).sum())
    best, off = None, 1 + 1e-3 * float(steps.sum())   # time stamps are rounded to a unit of the clock
    for rate in (stated, guessed, Fraction(1 / (step * unit)).limit_denominator(1001)):
        if not rate:
            continue
        single = 1 / float(rate * unit)
        held = np.maximum(1, np.rint(steps / single))
        beside = steps - held * single
        near = np.abs(beside) <= max(1, 0.01 * single)   # of the others one alone would move the rate of a short file
        drift = abs(float(beside[near].sum() if near.mean() > 0.5 else beside.sum()))
        if np.mean(held == 1) >= 0.25 and np.abs(beside).mean() <= max(0.2 * single, 0.5) and drift < off - 0.5:
            best, off = rate, drift
    if best:
        return best
    mean = Fraction(1 / (float(steps.mean()) * unit)).limit_denominator(1001)
    return stated if stated < 2 * mean else mean   # live recordings state the rate of their clock, 1000 a second


def _promised(container: "av.container.InputContainer", stream: "av.VideoStream", index: list[tuple[int, bool]],
              packets: Packets, num_shown: int, rate: Fraction, announced: Fraction) -> int:
    """Frames that a file was meant to hold: more than it shows where it was cut off. 0: it does not say.

    Lengths of whole containers are no promise: they may be those of the sound.
    """
    if container.format.name == "avi":
        hidden = packets.start * float(rate * (stream.time_base or 0))
        return round(float(announced * rate) - hidden) if stream.frames < UNKNOWN else 0
    lacking = sum(not hidden for _, hidden in index) - packets.num_packets
    if "mp4" in container.format.name and lacking > 1:
        return num_shown + lacking
    hours, minutes, seconds = (stream.metadata.get("DURATION", "").split(":") + ["", "", ""])[:3]
    with contextlib.suppress(ValueError):
        end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        frames = round((end - float(int(packets.times[0]) * (stream.time_base or 0))) * rate)
        return frames if frames > num_shown + 2 else 0   # tags are rounded, and some count from the start of the file
    return 0
