"""Awkward files made with FFmpeg's muxers, as people have them: every frame tells its number (`videos.numbered`)."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
from videos import numbered

MS = Fraction(1, 1000)
TIMES = np.arange(60) * 40                                        # 25 frames a second
DROPPED = np.array([t for n, t in enumerate(TIMES) if n % 20 not in range(5, 12)])   # a third of them is missing
LIVE = {"webm": {"live": "1"}, **{name: {"movflags": "frag_keyframe+empty_moov"} for name in ("mp4", "mov")}}
CODECS = {"avi": "mpeg4", "webm": "libvpx", "gif": "gif", "mpg": "mpeg2video", "vob": "mpeg2video", "flv": "flv1",
          "wmv": "wmv2", "mpeg": "mpeg1video", "m1v": "mpeg1video", "m2v": "mpeg2video"}


class Pipe(io.RawIOBase):
    """A file that a muxer cannot go back in, so that no length is written."""

    def __init__(self, path):
        self.file = open(path, "wb")

    def write(self, data):
        return self.file.write(data)

    def writable(self):
        return True

    def close(self):
        self.file.close()
        super().close()


def make(path, times=TIMES, sound_s=0, options=None, codec_options=None, target=None, shape=(48, 80), setup=None,
         hold_ms=0, shift_ms=0, codec=None):
    """Write frames with their numbers at `times` (ms): the frame at t has number t / 40.

    Args:
        sound_s: seconds of sound beside it.
        options: of the container.
        target: what is written to, in place of the path.
        setup: function of the video stream before it is opened.
        hold_ms: how long the last frame is shown; 0: as the others.
        shift_ms: added to the time stamps of packets: a negative one hides the beginning behind an edit list.
    """
    suffix = path.suffix[1:]
    codec = codec or CODECS.get(suffix, "libx264")
    kind = {"mkv": "matroska", "wmv": "asf", "ts": "mpegts", "mpg": "mpeg", "m4v": "mp4",
            "m1v": "mpeg1video", "m2v": "mpeg2video"}.get(suffix, suffix)
    frames = numbered(int(max(times)) // 40 + 1, *shape)
    with av.open(target or str(path), "w", format=kind, options=options or {}) as container:
        video = container.add_stream(codec, rate=25, options=codec_options or {"g": "12"})
        video.height, video.width = shape
        video.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec not in ("mpeg4", "mpeg1video", "mpeg2video", "flv1", "wmv2"):
            video.codec_context.time_base = MS
        if setup:
            setup(video)
        sound = container.add_stream("mp2" if suffix in ("avi", "mpg") else "aac", rate=48000) if sound_s else None
        unit = video.codec_context.time_base or Fraction(1, 25)
        packets = []
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[int(time) // 40]), format="rgb24")
            frame.pts, frame.time_base = round(int(time) * MS / unit), unit
            packets += video.encode(frame)
        packets += video.encode(None)
        for number, packet in enumerate(packets):
            move = round(shift_ms * MS / packet.time_base)
            packet.pts, packet.dts = packet.pts + move, packet.dts + move
            if hold_ms and number == len(packets) - 1:
                packet.duration = round(hold_ms * MS / packet.time_base)
            container.mux(packet)
        if sound:
            write_sound(container, sound, sound_s)


def write_sound(container, sound, seconds):
    for start in range(0, int(48000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32 if sound.format.name == "fltp" else np.int16),
                                           format="fltp" if sound.format.name == "fltp" else "s16p", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


def to_pipe(path, **how):
    with Pipe(path) as pipe:
        make(path, target=pipe, **how)


def turn(degrees, **mirrored):
    return lambda video: video.set_display_rotation(degrees, **mirrored)


def stretch(aspect):
    return lambda video: setattr(video.codec_context, "sample_aspect_ratio", aspect)


def reference(path, fps):
    """Frames as FFmpeg's own `fps` filter shows them from the first picture on, and time stamps of all pictures."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        chain = [source, graph.add("setpts", "PTS-STARTPTS"),
                 graph.add("fps", f"fps={Fraction(fps).limit_denominator(1001)}"), graph.add("buffersink")]
        for one, other in zip(chain, chain[1:]):
            one.link_to(other)
        graph.configure()
        shown = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    shown.append(graph.pull().to_ndarray(format="rgb24"))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return np.stack(shown)


def cut_edges(path, left, right, top, bottom):
    """Let the container of an mp4 or mkv file of `make` (with the title "x" * 16 in mkv) cut edges off its pictures."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".mkv":
        title, video = data.index(b"\x53\x6e\x90"), data.index(b"\xe0", data.index(b"x" * 16))
        end = video + 2 + data[video + 1] - 0x80
        crops = b"".join(struct.pack(">HBB", key, 0x81, value) for key, value in
                         ((0x54CC, left), (0x54DD, right), (0x54BB, top), (0x54AA, bottom)))   # PixelCrop...
        data[title:end] = (data[title + 19:video] + b"\xe0" + bytes([data[video + 1] + 16]) + data[video + 2:end]
                           + crops + b"\xec\x81\x00")   # and a void, so that nothing behind it moves
    else:
        boxes, end = [], len(data)
        place = 0
        for kind, header in ((b"moov", 8), (b"trak", 8), (b"mdia", 8), (b"minf", 8), (b"stbl", 8), (b"stsd", 16),
                             (b"avc1", 86)):
            while data[place + 4:place + 8] != kind:
                place += int.from_bytes(data[place:place + 4], "big")
            boxes.append(place)
            end, place = place + int.from_bytes(data[place:place + 4], "big"), place + header
        data[end:end] = struct.pack(">I4s8i", 40, b"clap", 80 - left - right, 1, 48 - top - bottom, 1,
                                    left - right, 2, top - bottom, 2)
        for box in boxes:   # moov lies at the end, so that no picture moves
            data[box:box + 4] = (int.from_bytes(data[box:box + 4], "big") + 40).to_bytes(4, "big")
    path.write_bytes(data)
