"""nbp.read_video and nbp.write_video."""

import numpy as np
import pytest
import torch
from videos import encode, number_of, numbered

import nbp
from nbp.data.clips import fit_size, fit_square, video_to_frames
from nbp.data.video_io import VideoError, probe, read_frames

FPS = 25


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """90 numbered frames of 48x80, 3.6 s."""
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    encode(path, numbered(90), "libx264", FPS, {"g": "30"})
    return path


def numbers(video):
    return [number_of(frame) for frame in video_to_frames(video)]


@pytest.mark.parametrize("arguments, expected", [
    ({}, range(90)),
    (dict(start=0), range(90)),
    (dict(start=2), range(50, 90)),
    (dict(num_frames=5), range(42, 47)),
    (dict(num_frames=5, size=(np.int64(48), np.int64(80))), range(42, 47)),
    (dict(num_frames=5, start=1), range(25, 30)),
    (dict(num_frames=4, fps=5, start=1), range(25, 45, 5)),
    (dict(fps=5), range(0, 90, 5)),
    (dict(fps=5, start=3), range(75, 90, 5)),
    (dict(num_frames=6, start=3.4), [85, 86, 87, 88, 89, 89]),
    (dict(num_frames=2, start=1.039), [25, 26]),
    (dict(num_frames=1, start=3.599999), [89]),
])
def test_frames_are_those_that_are_asked_for(path, arguments, expected):
    video = nbp.read_video(path, **arguments)
    assert video.shape == (3, len(expected), 48, 80) and video.dtype == torch.float32
    assert numbers(video) == list(expected)


def test_the_size_is_cut_from_the_centre_without_distortion(path):
    frames = read_frames(path, range(3))
    square = nbp.read_video(path, 3, size=32, start=0)
    assert np.array_equal(video_to_frames(square), fit_square(frames, 32, "aspect"))
    wide = nbp.read_video(path, 3, size=(16, 64), start=0)
    assert np.array_equal(video_to_frames(wide), fit_size(frames[:, 14:34], (16, 64), "squash"))


@pytest.mark.parametrize("arguments, words", [
    (dict(start=3.6), "start is 3.6 s; the video lasts 3.6 s"),
    (dict(start=-1), "start is -1 s"),
    (dict(num_frames=200), "too short: 90 frames give 90 of 200 clip frames"),
    (dict(num_frames=0), "num_frames must be at least 1, got 0"),
    (dict(fps=0), "fps must be a number above 0"),
    (dict(fps=float("nan")), "fps must be a number above 0"),
    (dict(size=0), "size must be whole pixels"),
    (dict(size=(32,)), "size must be whole pixels"),
    (dict(size=(32, 0.5)), "size must be whole pixels"),
])
def test_what_makes_no_sense_is_told(path, arguments, words):
    with pytest.raises(ValueError) as error:
        nbp.read_video(path, **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("rate, shown", [(15, 100 / 7), (50, 50), (100, 50)])
def test_a_gif_has_no_rate_that_is_shown_otherwise(tmp_path, rate, shown):
    nbp.write_video(tmp_path / "a.gif", numbered(9, 64, 64), rate)
    assert probe(tmp_path / "a.gif").fps == pytest.approx(shown)


@pytest.mark.parametrize("suffix, codec", [("mp4", "h264"), ("MOV", "h264"), ("WEBM", "vp9"), ("gif", "gif")])
def test_the_suffix_chooses_the_format(tmp_path, suffix, codec):
    import av

    frames = numbered(17, 64, 64)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2) / 255
    for name, clip in (("float", video), ("frames", frames), ("tensor", torch.from_numpy(frames))):
        path = tmp_path / f"{name}.{suffix}"
        nbp.write_video(path, clip, fps=20)
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name in (codec, f"lib{codec}-{codec}", f"libvpx-{codec}")
        assert (probe(path).num_frames, probe(path).fps) == (17, 20)
        assert numbers(nbp.read_video(path)) == list(range(17))


def test_a_webp_moves(tmp_path):
    from PIL import Image

    frames = numbered(6, 64, 64)
    nbp.write_video(tmp_path / "a.webp", frames, fps=10)
    with Image.open(tmp_path / "a.webp") as image:
        for number in range(image.n_frames):
            image.seek(number)
            assert np.array_equal(np.asarray(image.convert("RGB")), frames[number])
        assert image.n_frames == 6


@pytest.mark.parametrize("name, video, words", [
    ("a.txt", torch.zeros(3, 4, 8, 8), "the suffix chooses the format; accepted: .mp4"),
    ("a", torch.zeros(3, 4, 8, 8), "the suffix chooses the format"),
    ("a.mp4", torch.zeros(2, 3, 4, 8, 8), "one clip at a time"),
    ("a.mp4", torch.zeros(4, 8, 8, 3), "video must be float (3, T, H, W)"),
    ("a.mp4", torch.zeros(3, 4, 8, 8, dtype=torch.uint8), "or uint8 frames (T, H, W, 3), got uint8 (3, 4, 8, 8)"),
    ("a.mp4", torch.full((3, 4, 8, 8), torch.nan), "NaN"),
    ("a.mp4", torch.zeros(3, 4, 9, 8), "even height and width"),
    ("a.gif", torch.zeros(3, 0, 8, 8), "frames must be uint8 of shape (T, H, W, 3), got uint8 (0, 8, 8, 3)"),
])
def test_what_cannot_be_written_is_told(tmp_path, name, video, words):
    with pytest.raises(ValueError) as error:
        nbp.write_video(tmp_path / name, video, fps=8)
    assert words in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_rates_that_a_file_cannot_have_are_told(tmp_path, suffix):
    with pytest.raises(ValueError, match="fps must be a number, at least 0.001, got 0.0004"):
        nbp.write_video(tmp_path / f"a.{suffix}", torch.zeros(3, 4, 8, 8), fps=0.0004)
    nbp.write_video(tmp_path / f"a.{suffix}", numbered(9, 64, 64), fps=np.float32(10))
    assert nbp.probe(tmp_path / f"a.{suffix}").fps == 10


def test_the_errors_of_a_file_name_it(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoError, match="a.mp4"):
        nbp.read_video(tmp_path / "a.mp4")
