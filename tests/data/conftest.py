import shutil

import pytest
from videos import numbered

from nbp.config import DataConfig
from nbp.data.annotations import write_lists
from nbp.data.video_io import write_video


@pytest.fixture
def video(tmp_path):
    """Path of a 40-frame video of `numbered` frames at 10 fps."""
    path = tmp_path / "video.mp4"
    write_video(path, numbered(40), fps=10, crf=10)
    return path


@pytest.fixture(scope="session")
def written_set(tmp_path_factory):
    """Two classes, three training videos each, one validation video each, 30 frames of 48x80 at 10 fps."""
    root = tmp_path_factory.mktemp("written")
    frames, rows = numbered(30), {"train": [], "val": []}
    for split, clips in (("train", 3), ("val", 1)):
        for label in ("PlayCello", "Archery"):
            for clip in range(clips):
                name = f"{split}/{label}/{clip}.mp4"
                write_video(root / name, frames, fps=10, preset="ultrafast")
                rows[split].append((name, label))
    write_lists(root, rows["train"], rows["val"])
    return root


@pytest.fixture
def dataset_root(tmp_path, written_set):
    """A copy of `written_set` that a test may damage."""
    return shutil.copytree(written_set, tmp_path / "set")


@pytest.fixture
def make_config(dataset_root):
    """DataConfig of `dataset_root` with some fields replaced."""
    def build(**changes):
        fields = dict(name="test", root=str(dataset_root), train_list="train.txt", val_list="val.txt", resolution=32,
                      num_frames=9)
        return DataConfig(**(fields | changes))
    return build
