"""Rates that headers do not tell, and copies whose time stamps are those of chunks."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from files import TIMES, make, reference, stretch
from videos import number_of, numbered

from nbp.data.video_io import READERS, VideoError, check_video, probe, read_frames
from nbp.data.video_timeline import timeline


def numbers(path):
    """Numbers in the frames of a file, which any way of asking for them gives, and --verify with it."""
    info = check_video(path)
    frames = read_frames(path, range(info.num_frames))
    assert all(np.array_equal(read_frames(path, [index])[0], frames[index]) for index in range(0, len(frames), 5))
    return [number_of(frame) for frame in frames]


def steps(*parts):
    return np.cumsum([0, *sum(([ms] * count for ms, count in parts), [])])


# name: (times in ms, frames a second)
RATES = {
    "few-dropped.mp4": (np.delete(TIMES, [7, 30, 31]), 25), "few-dropped.mov": (np.delete(TIMES, [9, 40]), 25),
    "late-second.mp4": (steps((45, 1), (40, 50)), 25), "late-second.mkv": (steps((45, 1), (40, 50)), 25),
    "dark-half.mkv": (np.rint(steps((100 / 3, 40), (200 / 3, 40))).astype(int), 30),
    "film.gif": (10 * np.rint(np.arange(60) * 100 / 23.976).astype(int), 23.976),
    "screen.webm": (np.rint(steps((50 / 3, 9), (100, 3), (50 / 3, 20), (1000, 2), (50 / 3, 9))).astype(int), 60),
    "trembling.mkv": (np.cumsum(np.random.default_rng(0).integers(28, 40, 90)), None),
}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_is_that_of_the_grid_on_which_pictures_lie(tmp_path, name):
    times, fps = RATES[name]
    make(tmp_path / name, times=times)
    info, mean = probe(tmp_path / name), 1000 * (len(times) - 1) / (times[-1] - times[0])
    assert info.fps == pytest.approx(fps or mean, rel=2e-3)
    expected = reference(tmp_path / name, info.fps)
    assert np.array_equal(read_frames(tmp_path / name, range(len(expected))), expected)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("codec, depth", [("mpeg4", "2"), ("libx264", "3")])
def test_copies_of_avi_files_have_the_times_of_chunks(tmp_path, suffix, codec, depth):
    """As `ffmpeg -i a.avi -c copy a.mp4` makes them of Xvid."""
    make(tmp_path / "a.avi", codec=codec, codec_options={"g": "12", "bf": depth})
    copy = tmp_path / f"a.{suffix}"
    with av.open(tmp_path / "a.avi") as old, av.open(copy, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.stream = packet.dts, stream
                new.mux(packet)
    assert numbers(copy) == list(range(60))


@pytest.mark.parametrize("suffix, depth", [("mp4", "0"), ("mp4", "3"), ("mov", "3"), ("ts", "0"), ("flv", "3")])
def test_scrambled_time_stamps_leave_pictures_in_the_decoders_order(tmp_path, suffix, depth):
    make(tmp_path / "whole.mp4", codec_options={"g": "12", "bf": depth})
    path = tmp_path / f"scrambled.{suffix}"
    with av.open(tmp_path / "whole.mp4") as old, av.open(path, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        first, *others = [packet.pts for packet in packets]
        for packet, time in zip(packets, [first, *np.random.default_rng(0).permutation(others).tolist()]):
            packet.pts, packet.stream = time + 60 * 640, stream     # no picture is shown before it is decoded
            new.mux(packet)
    assert numbers(path) == list(range(60))


def test_an_avi_of_short_chunks(tmp_path):
    """Most of which hold nothing: FFmpeg miscounts them behind a seek."""
    make(tmp_path / "a.avi", codec="libx264", codec_options={"g": "24", "bf": "3"}, sound_s=2.4, shift_ms=300,
         setup=lambda video: setattr(video.codec_context, "time_base", Fraction(1, 600)))
    assert probe(tmp_path / "a.avi").fps == 25 and numbers(tmp_path / "a.avi") == list(range(60))


def test_an_xvid_file_that_begins_among_b_frames(tmp_path):
    """Two of them refer to what was cut off; they are no frames."""
    make(tmp_path / "whole.avi", codec_options={"g": "12", "bf": "2"})
    with av.open(tmp_path / "whole.avi") as old, av.open(tmp_path / "cut.avi", "w") as new:
        stream, begun = new.add_stream_from_template(old.streams.video[0]), None
        for packet in old.demux(video=0):
            if packet.dts is not None and (begun is not None or packet.is_keyframe and packet.dts > 0):
                begun = packet.dts if begun is None else begun
                packet.pts, packet.dts, packet.stream = None, packet.dts - begun, stream
                new.mux(packet)
    shown = numbers(tmp_path / "cut.avi")
    assert shown == list(range(shown[0], 60)) and 0 < shown[0] <= 14


@pytest.mark.parametrize("count", [1, 2])
def test_files_of_one_or_two_pictures(tmp_path, count):
    """Of which FFmpeg guesses the rate of the clock, and which decord may not open."""
    pytest.importorskip("decord")
    for suffix in ("mp4", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "m2v", "flv", *["ts", "wmv"][:2 * (count - 1)]):
        path = tmp_path / f"a.{suffix}"
        make(path, times=TIMES[:count])
        assert (probe(path).num_frames, probe(path).fps) == (count, 25), suffix
        for reader in READERS:
            assert [number_of(frame) for frame in read_frames(path, range(count), reader)] == list(range(count))


def test_a_palette_lies_at_the_beginning(tmp_path):
    make(tmp_path / "a.mov", codec="qtrle", setup=lambda video: setattr(video, "pix_fmt", "gray"))
    assert numbers(tmp_path / "a.mov") == list(range(60))


def test_pictures_without_times_covers_and_pictures_are_no_videos(tmp_path):
    make(tmp_path / "a.h264")
    with pytest.raises(VideoError, match="does not say when its pictures are shown; `ffmpeg -i .*a.h264 NEW.mp4`"):
        probe(tmp_path / "a.h264")
    with av.open(tmp_path / "song.mp4", "w") as container:
        sound, cover = container.add_stream("aac", rate=48000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        sound_frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound_frame.sample_rate = 48000
        container.mux(sound.encode(sound_frame))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match="song.mp4: the file holds no video stream, only a cover picture"):
        probe(tmp_path / "song.mp4")
    av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24").to_image().save(tmp_path / "a.png")
    (tmp_path / "picture.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(VideoError, match="picture.mp4: is a picture, not a video"):
        probe(tmp_path / "picture.mp4")


def filtered(path):
    """All pictures by FFmpeg's filters, as `ffmpeg -pix_fmt rgb24` converts them, with square pixels."""
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        width = round(stream.width * (stream.sample_aspect_ratio or 1))
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("scale", f"{width}:{stream.height}"),
                         graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        for frame in container.decode(stream):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
    return np.stack(frames)


@pytest.mark.parametrize("name, options, pixels", [
    ("deep.mkv", {}, "yuv420p10le"), ("woven.mkv", {"x264-params": "interlaced=1"}, "yuv420p"),
    ("whole-range.mp4", {}, "yuvj420p"), ("half-colour.mp4", {}, "yuv422p"), ("grey.mp4", {}, "gray"),
    ("wide.mp4", {}, "yuv420p")])
def test_colours_are_those_of_ffmpeg(tmp_path, name, options, pixels):
    pytest.importorskip("decord")

    def setup(video):
        video.pix_fmt = pixels
        stretch(Fraction(4, 3) if name == "wide.mp4" else Fraction(1))(video)

    make(tmp_path / name, times=TIMES[:12], codec_options={"g": "12", **options}, setup=setup, shape=(64, 80))
    expected = filtered(tmp_path / name)
    for reader in ("pyav", "decord"):
        assert np.array_equal(read_frames(tmp_path / name, range(12), reader), expected), reader


def test_what_a_stream_cuts_off_is_cut_to_the_pixel(tmp_path):
    make(tmp_path / "a.mp4", times=TIMES[:12])
    with av.open(tmp_path / "a.mp4") as old, av.open(tmp_path / "cut.mp4", "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        cut = BitStreamFilterContext("h264_metadata=crop_left=8:crop_right=16:crop_top=4:crop_bottom=2", source, stream)
        for packet in old.demux(source):
            for out in cut.filter(packet if packet.dts is not None else None):
                out.stream = stream
                new.mux(out)
    whole = read_frames(tmp_path / "a.mp4", range(12))
    assert np.array_equal(read_frames(tmp_path / "cut.mp4", range(12)), whole[:, 4:-2, 8:-16])


@pytest.mark.parametrize("suffix, reads", [("mp4", True), ("mkv", True), ("flv", False)])
def test_decord_reads_what_it_seeks_right(tmp_path, suffix, reads):
    path = tmp_path / f"a.{suffix}"
    make(path, codec="libx264", codec_options={"g": "7", "bf": "2"})
    assert timeline(path).by_decord is reads
    assert [number_of(frame) for frame in read_frames(path, [36, 37, 59], reader="decord")] == [36, 37, 59]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_single_picture_of_an_encoder_with_b_frames(tmp_path, codec):
    """In AVI it comes out of the emptied decoder without a time."""
    make(tmp_path / "one.avi", times=[0], codec=codec, codec_options={"bf": "2"})
    with pytest.raises(VideoError, match="one.avi: it does not say when its pictures are shown; `ffmpeg -i"):
        read_frames(tmp_path / "one.avi", [0])
