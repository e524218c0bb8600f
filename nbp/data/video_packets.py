"""The packets of a video stream, on a clock that runs on; and the pictures in them.

Clocks of broadcasts and of recordings put behind one another start anew or jump: there time goes on where it was, by
the rule of FFmpeg's own program. Gif pictures that claim less than 2/100 s are shown for 10, as browsers show them.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

JUMPING = ("mpegts", "mpeg", "mpegvideo")   # formats that promise no steady clock
# In others decord 0.6 seeks wrong, by up to 60 frames: h264 in AVI and flv, MPEG-4 and MPEG-2 with B-frames, H.265, ...
DECORD_FORMATS, DECORD_CODECS = ("mov", "matroska"), ("h264", "vp8", "vp9", "mjpeg")
FORWARD_S, BACK_S = 10.0, 0.1    # a longer step between packets is a jump of the clock
QUICK, SLOW = 2, 10              # of gif pictures, in 1/100 s


def packets_of(container: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator["av.Packet"]:
    """Packets from where the container stands, the empty one at its end included."""
    with contextlib.suppress(IndexError):   # PyAV stumbles at the end over streams that began behind the header
        yield from container.demux(stream)


class SteadyPackets:
    """Packets from where the container stands; `moved` tells whether the time stamp of any so far was changed."""

    def __init__(self, container: "av.container.InputContainer", stream: "av.VideoStream") -> None:
        self.moved = False
        self._container, self._stream = container, stream
        self._jumps = container.format.name in JUMPING
        self._gif = container.format.name == "gif"

    def __iter__(self) -> Iterator["av.Packet"]:
        packets = packets_of(self._container, self._stream)
        return self._steady(packets) if self._gif or self._jumps else packets

    def _steady(self, packets: Iterable["av.Packet"]) -> Iterator["av.Packet"]:
        unit = float(self._stream.time_base or 1)
        usual = 1 / (float(self._stream.guessed_rate or 25) * unit)
        shift, expected = 0, None   # the end of the packet before
        for packet in packets:
            if packet.dts is not None:
                if expected is None and self._container.format.name == "mpegvideo" and packet.pts == packet.dts:
                    # Its guess for the first picture of MPEG-1 is one picture early.
                    packet.pts, self.moved = packet.dts + (packet.duration or 0), True
                step = 0.0 if expected is None else (packet.dts + shift - expected) * unit
                if self._gif and 0 <= (packet.duration or 0) < QUICK:
                    packet.duration = SLOW
                if step and self._gif or step > FORWARD_S or step < -BACK_S:
                    assert expected is not None
                    shift = expected - packet.dts
                expected = packet.dts + shift + (packet.duration or round(usual))
            if shift:
                self.moved = True
                packet.dts = None if packet.dts is None else packet.dts + shift
                packet.pts = None if packet.pts is None else packet.pts + shift
            yield packet


def packets_from_key(container: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator["av.Packet"]:
    """Packets from where the container stands, without those before a key frame, of which MPEG-4 makes garbage."""
    return itertools.dropwhile(lambda packet: not packet.is_keyframe, packets_of(container, stream))


def packets_by_index(container: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator["av.Packet"]:
    """Packets of an AVI file from where the container stands, with the time stamps of its index.

    Behind a seek FFmpeg's own are off by the chunks without a picture that lie before.
    """
    times, shift = {entry.pos + 8: entry.timestamp for entry in stream.index_entries}, None   # 8 bytes: its header
    for packet in packets_of(container, stream):
        if packet.dts is not None:
            shift = times.get(packet.pos or 0, packet.dts) - packet.dts if shift is None else shift
            packet.dts += shift
        yield packet


def pictures_of(packets: Iterable["av.Packet"]) -> Iterator["av.VideoFrame"]:
    """Decode packets of a video stream.

    Those that cannot be decoded because they lie or are shown before the first key frame are skipped: what they refer
    to was cut off.

    Raises:
        av.error.FFmpegError: another one cannot be decoded.
    """
    import av

    key: int | None = None   # when the first key frame is shown
    for packet in packets:
        if key is None and packet.is_keyframe and packet.size:
            key = packet.pts if packet.pts is not None else packet.dts
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if key is not None and not (packet.pts is not None and packet.pts < key):
                raise
            continue
        yield from frames


def seeks_by_decord(stream: "av.VideoStream") -> bool:
    """Whether decord finds the frames of such a file."""
    return (stream.container.format.name.split(",")[0] in DECORD_FORMATS
            and stream.codec_context.codec.canonical_name in DECORD_CODECS)


def held_back(stream: "av.VideoStream") -> int:
    """Pictures that the decoder still lets out; none where it was emptied, for a first picture that is the last one."""
    try:
        return len(stream.codec_context.decode(None))
    except EOFError:
        return 0
