"""Pictures as clips of one frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from nbp.data.images import ImageDataset, JointDataset
from nbp.data.pictures import read_picture
from nbp.data.video_io import VideoError, read_frames


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of 40x60 in two folders, one of them grey."""
    random = np.random.default_rng(0)
    for number, name in enumerate(("a/0.png", "a/1.jpg", "b/2.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 60) if number == 2 else (40, 60, 3), np.uint8)).save(path)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_clips_of_one_frame(pictures, make_config):
    dataset = ImageDataset(make_config(flip=True), pictures)
    assert dataset.paths == ["a/0.png", "a/1.jpg", "b/2.png"]
    for item in range(3):
        sample = dataset[(item, 1, 5)]
        assert sample["video"].shape == (3, 1, 32, 32) and sample["video"].dtype == torch.float32
        assert 0 <= sample["video"].min() and sample["video"].max() <= 1
        assert torch.equal(dataset[(item, 1, 5)]["video"], sample["video"])
    assert not torch.equal(dataset[(0, 1, 5)]["video"], dataset[(0, 1, 6)]["video"])      # another crop


def test_a_list_chooses_pictures(pictures, make_config):
    (pictures / "list.txt").write_text("b/2.png\t\na/0.png\t\n")
    assert ImageDataset(make_config(), pictures, "list.txt").paths == ["b/2.png", "a/0.png"]


def test_bad_pictures(pictures, make_config, tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        ImageDataset(make_config(), tmp_path / "nowhere")
    (pictures / "a" / "0.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="0.png cannot be read as a picture"):
        ImageDataset(make_config(), pictures)[(0, 1, 0)]


def test_a_png_that_breaks_in_its_middle_is_named(tmp_path):
    """There Pillow raises a SyntaxError, which ended workers without a name."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(path)
    before, first, *others = path.read_bytes().split(b"IDAT")
    assert others, "several chunks of pixels"
    path.write_bytes(b"IDAT".join([before, first]) + b"\xff\xff\xff\xff" + b"IDAT".join(others))
    with pytest.raises(VideoError, match="a.png cannot be read as a picture: broken PNG file"):
        read_picture(path)


def test_clips_and_pictures_side_by_side(pictures, make_config):
    from nbp.data.dataset import VideoDataset

    videos = VideoDataset(make_config(), "train", train=True)
    joint = JointDataset(videos, ImageDataset(make_config(), pictures))
    assert len(joint) == len(videos) + 3
    assert joint[(1, 9, 3)]["video"].shape == (3, 9, 32, 32)
    assert joint[(len(videos) + 2, 1, 3)]["path"] == "b/2.png"


QUARTERS = np.arange(12, dtype=np.uint8).reshape(3, 4, 1).repeat(8, 0).repeat(8, 1) * 20 + np.zeros(3, np.uint8)
SHOWN = {1: QUARTERS, 2: QUARTERS[:, ::-1], 3: QUARTERS[::-1, ::-1], 4: QUARTERS[::-1],
         5: QUARTERS.swapaxes(0, 1), 6: np.rot90(QUARTERS, -1), 7: QUARTERS[::-1, ::-1].swapaxes(0, 1),
         8: np.rot90(QUARTERS)}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_shown_as_their_exif_data_say(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(QUARTERS).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    frame = read_picture(tmp_path / f"a.{suffix}")
    assert frame.shape == SHOWN[orientation].shape
    assert np.abs(frame.astype(int) - SHOWN[orientation]).max() <= 2


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_an_animation_is_no_picture_but_a_video_once_it_is_saved_as_one(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=40)
    with pytest.raises(VideoError, match=f"a.{suffix} is an animation, not one picture; save it as .gif or .mp4"):
        read_picture(tmp_path / f"a.{suffix}")
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    assert read_frames(tmp_path / "a.gif", range(3))[:, 8, 8, 0].tolist() == [0, 100, 200]
    (tmp_path / "gif.png").write_bytes((tmp_path / "a.gif").read_bytes())
    with pytest.raises(VideoError, match="gif.png is an animation"):
        read_picture(tmp_path / "gif.png")
