"""Pictures as clips of one frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from nbp.data.images import ImageDataset, JointDataset


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


def test_clips_and_pictures_side_by_side(pictures, make_config):
    from nbp.data.dataset import VideoDataset

    videos = VideoDataset(make_config(), "train", train=True)
    joint = JointDataset(videos, ImageDataset(make_config(), pictures))
    assert len(joint) == len(videos) + 3
    assert joint[(1, 9, 3)]["video"].shape == (3, 9, 32, 32)
    assert joint[(len(videos) + 2, 1, 3)]["path"] == "b/2.png"
