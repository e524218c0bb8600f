"""Files as people have them: what is read is what FFmpeg shows at that time, however it is asked for."""

from fractions import Fraction

import av
import numpy as np
import pytest
from files import DROPPED, LIVE, TIMES, cut_edges, make, reference, stretch, to_pipe, turn
from videos import number_of, numbered

from nbp.data.video_io import READERS, VideoError, check_video, probe, read_frames

WEIRD = {"g": "12", "bf": "2"}
# name: (maker, its arguments, frames at 25/s, None where FFmpeg's reading alone decides)
FILES = {
    **{f"dropped.{suffix}": (make, dict(times=DROPPED), 60) for suffix in
       ("mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "wmv", "m4v")},
    **{f"sound-longer.{suffix}": (make, dict(sound_s=5), 60) for suffix in ("mp4", "mov", "mkv", "avi", "ts")},
    **{f"sound-twice.{suffix}": (make, dict(sound_s=7, times=TIMES[:30]), 30) for suffix in ("mkv", "mp4")},
    **{f"late.{suffix}": (make, dict(shift_ms=3000), 60) for suffix in ("mp4", "mov", "mkv", "webm", "ts", "flv")},
    **{f"trimmed.{suffix}": (make, dict(shift_ms=-1000), 35) for suffix in ("mp4", "mov", "m4v")},
    "trimmed-b-frames.mp4": (make, dict(shift_ms=-1000, codec_options={"g": "50", "bf": "3"}), 35),
    **{f"live.{suffix}": (make, dict(options=options), 60) for suffix, options in LIVE.items()},
    **{f"piped.{suffix}": (to_pipe, {}, 60) for suffix in ("mkv", "webm")},
    "dropped-live.webm": (make, dict(times=DROPPED, options=LIVE["webm"]), 60),
    "plain.mpg": (make, {}, 60), "plain.mpeg": (make, {}, 60), "plain.gif": (make, {}, 60),
    "b-frames.mpg": (make, dict(codec_options=WEIRD), 60), "xvid.avi": (make, dict(codec_options=WEIRD), 60),
    "held.gif": (make, dict(times=[0, 40, 80, 600, 640]), None),
    "uneven.mkv": (make, dict(times=np.cumsum(np.r_[0, np.random.default_rng(0).choice([40, 80, 120], 59)])), None),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_are_what_ffmpeg_shows_at_that_time(tmp_path, name):
    maker, how, count = FILES[name]
    maker(tmp_path / name, **how)
    info, expected = probe(tmp_path / name), reference(tmp_path / name, probe(tmp_path / name).fps)
    if count:
        assert (info.num_frames, info.fps) == (count, 25)
    assert abs(info.num_frames - len(expected)) <= 1, "muxers keep the duration of the last picture roughly"
    frames = read_frames(tmp_path / name, range(info.num_frames))
    assert np.array_equal(frames[:len(expected)], expected[:info.num_frames])
    for index in [*range(0, info.num_frames, 7), info.num_frames - 1]:
        assert np.array_equal(read_frames(tmp_path / name, [index])[0], frames[index]), index
    with pytest.raises(VideoError, match=f"{name}: ends before frame {info.num_frames}"):
        read_frames(tmp_path / name, [0, info.num_frames])
    assert check_video(tmp_path / name) == info


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_dropped_frames_in_avi_are_placed_by_their_chunks(tmp_path, codec):
    """FFmpeg guesses a delay of one frame for h264 in AVI, which has none, so the rule is that of the chunks."""
    make(tmp_path / "a.avi", times=DROPPED, codec=codec, codec_options={"g": "12", "bf": "0"})
    expected = [int(DROPPED[DROPPED <= 40 * index].max()) // 40 for index in range(60)]
    assert [number_of(frame) for frame in read_frames(tmp_path / "a.avi", range(60))] == expected
    assert [number_of(read_frames(tmp_path / "a.avi", [index])[0]) for index in range(60)] == expected


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_last_picture_is_held_as_long_as_it_is_shown(tmp_path, suffix):
    make(tmp_path / f"held.{suffix}", hold_ms=2000, codec_options={"g": "12", "bf": "0"})
    assert probe(tmp_path / f"held.{suffix}").num_frames == 109
    assert number_of(read_frames(tmp_path / f"held.{suffix}", [108])[0]) == 59
    check_video(tmp_path / f"held.{suffix}")


SQUARE = Fraction(1)
SHOWN = {
    "90.mp4": (turn(-90), lambda frames: np.rot90(frames, -1, (1, 2))),
    "270.mov": (turn(90), lambda frames: np.rot90(frames, 1, (1, 2))),
    "180.mkv": (turn(180), lambda frames: frames[:, ::-1, ::-1]),
    "mirrored.mp4": (turn(0, hflip=True), lambda frames: frames[:, :, ::-1]),
    "upside-down.mp4": (turn(0, vflip=True), lambda frames: frames[:, ::-1]),
    "90-mirrored.mkv": (turn(-90, hflip=True), lambda frames: np.rot90(frames, -1, (1, 2))[:, :, ::-1]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", SHOWN)
def test_pictures_are_turned_as_they_are_shown(tmp_path, name, reader):
    pytest.importorskip("decord")
    setup, expected = SHOWN[name]
    make(tmp_path / name, setup=setup)
    with av.open(tmp_path / name) as container:  # of this file: x264 may write the same pictures a little differently
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])[20:40]
    frames = read_frames(tmp_path / name, range(20, 40), reader)
    assert np.array_equal(frames, expected(plain))
    assert (probe(tmp_path / name).height, probe(tmp_path / name).width) == frames.shape[1:3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("reader", READERS)
def test_pixels_become_square(tmp_path, suffix, reader):
    pytest.importorskip("decord")
    make(tmp_path / f"wide.{suffix}", setup=stretch(Fraction(64, 45)))
    frames = read_frames(tmp_path / f"wide.{suffix}", [3], reader)
    assert frames.shape == (1, 48, 114, 3) and probe(tmp_path / f"wide.{suffix}").width == 114
    squares = [frames[0, 2:6, round((8 * bit + 4) * 114 / 80)].mean() > 127 for bit in range(8)]
    assert squares == [True, True] + 6 * [False], "frame 3"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name, edges", [
    ("cut.mkv", (6, 8, 2, 4)), ("turned.mkv", (6, 8, 2, 4)), ("odd.mkv", (5, 8, 3, 4)), ("cut.mp4", (6, 14, 2, 4))])
def test_edges_that_a_container_cuts_off_are_not_shown(tmp_path, name, edges, reader):
    """To whole pixels of colour, as `ffmpeg` cuts them; turned afterwards."""
    pytest.importorskip("decord")
    make(tmp_path / name, times=TIMES[:12], setup=lambda video: (
        video.metadata.update(title="x" * 16), name == "turned.mkv" and turn(-90)(video)))
    left, right, top, bottom = edges
    whole = read_frames(tmp_path / name, range(12))
    whole = np.rot90(whole, 1, (1, 2)) if name == "turned.mkv" else whole
    shown = whole[:, top // 2 * 2:, left // 2 * 2:][:, :(48 - top - bottom) // 2 * 2, :(80 - left - right) // 2 * 2]
    cut_edges(tmp_path / name, *edges)
    frames = read_frames(tmp_path / name, range(12), reader)
    assert np.array_equal(frames, np.rot90(shown, -1, (1, 2)) if name == "turned.mkv" else shown)
    assert (probe(tmp_path / name).height, probe(tmp_path / name).width) == frames.shape[1:3]


def test_a_size_that_changes_inside_a_file(tmp_path):
    parts = []
    for number, shape in enumerate([(48, 80), (96, 160), (24, 40)]):
        make(tmp_path / f"{number}.ts", times=TIMES[:20], shape=shape, codec_options={"g": "12", "bf": "0"},
             shift_ms=800 * number)
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "all.ts").write_bytes(b"".join(parts))
    frames = read_frames(tmp_path / "all.ts", range(probe(tmp_path / "all.ts").num_frames))
    assert frames.shape == (60, 48, 80, 3)
    assert [number_of(frame) for frame in frames[:20]] == list(range(20))
    half = [number_of(frame.repeat(2, 0).repeat(2, 1)) for frame in frames[20:40]]
    assert half == list(range(20)), "the second part at half its size"


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx"])
def test_decord_and_pyav_agree_where_the_size_changes_in_an_ordinary_file(tmp_path, codec):
    """Key frames of another size with parameters of their own: a call whose sender turned to a smaller picture."""
    pytest.importorskip("decord")
    path, noise = tmp_path / f"call.{'webm' if codec == 'libvpx' else 'avi'}", np.random.default_rng(0)
    parts = []
    for number, (height, width) in enumerate([(48, 80), (96, 160), (48, 80)]):
        part = tmp_path / f"{number}{path.suffix}"
        with av.open(str(part), "w") as container:
            video = container.add_stream(codec, rate=25)
            video.height, video.width, video.pix_fmt = height, width, "yuv420p"
            for _ in range(8):
                picture = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
        parts.append(part)
    with av.open(str(path), "w") as joined:
        with av.open(str(parts[0])) as first:
            copy = joined.add_stream_from_template(first.streams.video[0])
        for number, part in enumerate(parts):
            with av.open(str(part)) as container:
                for index, packet in enumerate(p for p in container.demux(video=0) if p.size):
                    packet.stream = copy
                    packet.pts = packet.dts = round((8 * number + index) / 25 / packet.time_base)
                    joined.mux(packet)
    assert probe(path).num_frames == 24
    assert np.array_equal(read_frames(path, range(24), "decord"), read_frames(path, range(24)))


def test_interlacing_is_said_and_a_cover_is_no_video(tmp_path):
    make(tmp_path / "woven.mkv", codec_options={"x264-params": "interlaced=1"}, shape=(64, 80))
    make(tmp_path / "plain.mkv")
    assert probe(tmp_path / "woven.mkv").interlaced and not probe(tmp_path / "plain.mkv").interlaced
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 80, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for frame in numbered(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
    assert (probe(tmp_path / "cover.mp4").num_frames, probe(tmp_path / "cover.mp4").width) == (20, 80)


@pytest.mark.parametrize("suffix", ["avi", "mkv", "webm", "mp4"])
def test_a_file_that_was_cut_off_is_bad_for_verify_and_for_reading(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    make(path, options={"movflags": "faststart"} if suffix == "mp4" else {})
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])
    assert number_of(read_frames(path, [5])[0]) == 5
    with pytest.raises(VideoError, match=path.name):
        check_video(path)
    with pytest.raises(VideoError, match=path.name):
        read_frames(path, range(probe(path).num_frames), strict=True)


def test_titles_in_any_encoding_and_unknown_codecs(tmp_path):
    make(tmp_path / "title.avi")
    content = (tmp_path / "title.avi").read_bytes()
    with av.open(str(tmp_path / "named.mkv"), "w") as container:
        container.metadata["title"] = "xxxx"
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 80, "yuv420p"
        for frame in numbered(9):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
    named = tmp_path / "named.mkv"
    named.write_bytes(named.read_bytes().replace(b"xxxx", b"caf\xe9"))
    assert probe(named).num_frames == 9
    (tmp_path / "title.avi").write_bytes(content.replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match="title.avi"):
        probe(tmp_path / "title.avi")


def test_a_time_line_is_read_anew_where_the_file_has_changed(tmp_path):
    make(tmp_path / "a.mkv")
    assert probe(tmp_path / "a.mkv").num_frames == 60
    make(tmp_path / "a.mkv", times=TIMES[:30])
    assert probe(tmp_path / "a.mkv").num_frames == 30
    (tmp_path / "a.mkv").unlink()
    with pytest.raises(VideoError, match="a.mkv: no such file"):
        probe(tmp_path / "a.mkv")
