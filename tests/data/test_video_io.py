import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from videos import encode, number_of, numbered

from nbp.data.video_io import VideoError, probe, read_frames, write_video

NTSC = Fraction(30000, 1001)
FORMATS = {
    "h264 long GOP": ("a.mp4", "libx264", 25, {"g": "250", "bf": "3"}),
    "h264 open GOP, 29.97 fps": ("b.mp4", "libx264", NTSC, {"x264-params": "keyint=30:open-gop=1:bframes=3"}),
    "h264 without B-frames": ("c.mkv", "libx264", NTSC, {"g": "20", "bf": "0"}),
    "h264 in avi": ("d.avi", "libx264", 25, {"g": "40", "bf": "3"}),
    "xvid with B-frames": ("e.avi", "mpeg4", 25, {"bf": "2", "g": "40"}),
    "xvid with B-frames, 29.97 fps": ("f.avi", "mpeg4", NTSC, {"bf": "1", "g": "12"}),
    "mpeg4 with B-frames": ("g.mp4", "mpeg4", NTSC, {"bf": "2", "g": "40"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_read_by_index_equals_sequential_decoding(tmp_path, name):
    file, codec, fps, options = FORMATS[name]
    path = tmp_path / file
    encode(path, numbered(90), codec, fps, options)
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    info = probe(path)
    assert (info.num_frames, info.width, info.height) == (90, 80, 48)
    assert info.fps == pytest.approx(float(fps)) and info.duration_s == pytest.approx(90 / float(fps))
    for index in range(90):
        assert np.array_equal(read_frames(path, [index])[0], expected[index]), index
    spread = [70, 3, 70, 41, 89]
    assert np.array_equal(read_frames(path, spread), expected[spread])
    assert [number_of(frame) for frame in expected[::10]] == list(range(0, 90, 10))


@pytest.mark.parametrize("name", FORMATS)
def test_strict_reading_refuses_damage_and_nothing_else(tmp_path, name):
    file, codec, fps, options = FORMATS[name]
    path = tmp_path / file
    encode(path, numbered(90), codec, fps, options)
    for indices in (range(0, 90, 7), [40, 41, 42], [89]):
        assert np.array_equal(read_frames(path, indices, strict=True), read_frames(path, indices))
    data = bytearray(path.read_bytes())
    data[len(data) // 3:len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=file):
        read_frames(path, range(90), strict=True)


def test_uneven_time_stamps_give_a_constant_rate(tmp_path):
    times = np.cumsum(np.r_[0, np.random.default_rng(0).choice([20, 40, 80], 99)])
    path = tmp_path / "uneven.mp4"
    encode(path, numbered(100), "libx264", 25, {"g": "30"}, times_ms=times)
    info = probe(path)
    tick = np.round(times / 1000 * info.fps).astype(int)
    expected = [int(np.searchsorted(tick, index, side="right")) - 1 for index in range(tick[-1])]
    assert [number_of(frame) for frame in read_frames(path, range(tick[-1]))] == expected
    assert [number_of(read_frames(path, [index])[0]) for index in range(0, tick[-1], 7)] == expected[::7]


def test_only_needed_frames_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    encode(path, numbered(200), "libx264", 25, {"g": "20", "bf": "0"})
    decoded = []
    original = av.container.InputContainer.decode

    def counting(self, *arguments):
        for frame in original(self, *arguments):
            decoded.append(frame)
            yield frame

    class Counted:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

        def decode(self, stream):
            return counting(self.container, stream)

    opened = av.open
    monkeypatch.setattr(av, "open", lambda *arguments, **options: Counted(opened(*arguments, **options)))
    assert [number_of(frame) for frame in read_frames(path, range(150, 155))] == list(range(150, 155))
    assert len(decoded) <= 40


def test_decord_reads_the_same_frames(video):
    pytest.importorskip("decord")
    indices = [0, 5, 6, 30]
    assert np.array_equal(read_frames(video, indices, "decord"), read_frames(video, indices))
    with pytest.raises(VideoError, match="video.mp4: ends before frame 40"):
        read_frames(video, [40], "decord")


@pytest.mark.parametrize("codec, suffix, options", [
    ("libx264", "avi", {}), ("libx264", "mkv", {}), ("mpeg4", "mp4", {"bf": "2"}), ("mpeg4", "avi", {"bf": "1"}),
    ("mpeg2video", "mkv", {"bf": "2", "b": "4000000"}), ("libx265", "mp4", {}), ("libx264", "wmv", {"bf": "0"}),
])
def test_decord_reads_only_files_in_which_it_seeks_right(tmp_path, codec, suffix, options):
    pytest.importorskip("decord")
    path = tmp_path / f"a.{suffix}"
    encode(path, numbered(90), codec, 25, options | {"g": "12"})
    for indices in (range(37, 54), [60, 76, 8]):
        assert [number_of(frame) for frame in read_frames(path, indices, "decord")] == list(indices)


def test_444_is_near_lossless(tmp_path):
    frames = numbered(4, 64, 64)
    write_video(tmp_path / "a.mp4", frames, 15, crf=6, pixel_format="yuv444p")
    error = read_frames(tmp_path / "a.mp4", range(4)).astype(float) - frames
    assert 10 * np.log10(255 ** 2 / np.mean(error ** 2)) > 40


def _broken(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        path.write_bytes(b"this is no video\n" * 500)
    elif kind == "truncated":
        write_video(path, numbered(40), 10)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "truncated", "audio"])
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_bad_files_name_themselves(tmp_path, kind, reader):
    path = _broken(tmp_path, kind)
    with pytest.raises(VideoError, match=f"{kind}.mp4: ") as caught:
        read_frames(path, [0], reader)
    assert caught.value.path == str(path)
    with pytest.raises(VideoError, match=f"{kind}.mp4: "):
        probe(path)


def test_a_file_cut_behind_its_header_fails_where_the_damage_is(tmp_path):
    path = tmp_path / "cut.avi"
    encode(path, numbered(90), "mpeg4", 25, {"g": "10"})
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert number_of(read_frames(path, [5])[0]) == 5
    with pytest.raises(VideoError, match="cut.avi: ends before frame 8"):
        read_frames(path, [85])


def test_reading_past_the_end_and_bad_indices(video):
    with pytest.raises(VideoError, match=r"ends before frame 45 \(its header announces 40 frames\)"):
        read_frames(video, [39, 45])
    with pytest.raises(ValueError, match="non-empty list of numbers >= 0"):
        read_frames(video, [-1])
    with pytest.raises(ValueError, match="non-empty list"):
        read_frames(video, [])
    with pytest.raises(ValueError, match="accepted: pyav, decord"):
        read_frames(video, [0], "opencv")


@pytest.mark.parametrize("frames, message", [
    (np.zeros((4, 8, 8, 3), np.float32), "float32"),
    (np.zeros((4, 8, 8), np.uint8), r"\(4, 8, 8\)"),
    (np.zeros((4, 8, 8, 4), np.uint8), r"\(T, H, W, 3\)"),
    (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)"),
    (np.zeros((4, 9, 8, 3), np.uint8), "9x8"),
])
def test_write_refuses_other_frames(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"fps": 0}, {"fps": 10, "crf": 60}, {"fps": 10, "pixel_format": "rgb24"}])
def test_write_refuses_bad_settings(tmp_path, arguments):
    with pytest.raises(ValueError):
        write_video(tmp_path / "a.mp4", numbered(2), **arguments)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(video, monkeypatch):
    before = video.read_bytes()

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", stop)
    with pytest.raises(KeyboardInterrupt):
        write_video(video, numbered(4), 10)
    assert video.read_bytes() == before and list(video.parent.iterdir()) == [video]


def test_video_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoError("is empty", "/a/b.mp4")))
    assert str(error) == "/a/b.mp4: is empty" and error.path == "/a/b.mp4"
