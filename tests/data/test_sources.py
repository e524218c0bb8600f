import logging
import sys

import numpy as np
import pytest

from nbp.data.annotations import read_annotations
from nbp.data.sources import k600, procgen, ucf101


def touch(root, *names, content=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def ucf_tree(root):
    for label in ("ApplyEyeMakeup", "YoYo"):
        touch(root, *[f"{label}/v_{label}_g{group:02d}_c01.avi" for group in (1, 7, 8, 25)])


def test_ucf101_by_groups(tmp_path):
    ucf_tree(tmp_path)
    ucf101.prepare(tmp_path)
    expected = [f"{label}/v_{label}_g{group}_c01.avi" for label in ("ApplyEyeMakeup", "YoYo") for group in ("01", "07")]
    assert read_annotations(tmp_path / "val.txt") == [(clip, clip.split("/")[0]) for clip in expected]
    assert len(read_annotations(tmp_path / "train.txt")) == 4
    assert (tmp_path / "classes.txt").read_text() == "ApplyEyeMakeup\nYoYo\n"


@pytest.mark.parametrize("place", ["UCF-101/ucfTrainTestlist", "ucfTrainTestlist"])
def test_ucf101_official_split(tmp_path, place):
    root = tmp_path / "UCF-101"
    ucf_tree(root)
    train, val = "YoYo/v_YoYo_g01_c01.avi", "YoYo/v_YoYo_g25_c01.avi"
    touch(tmp_path / place, "trainlist02.txt", content=f"{train} 101\r\n".encode())
    touch(tmp_path / place, "testlist02.txt", content=f"{val}\r\n\r\n".encode())
    ucf101.prepare(root, split=2)
    assert read_annotations(root / "train.txt") == [(train, "YoYo")]
    assert read_annotations(root / "val.txt") == [(val, "YoYo")]
    with pytest.raises(ValueError, match="trainlist01.txt does not exist"):
        ucf101.prepare(root)
    (root / val).unlink()
    with pytest.raises(ValueError, match=r"testlist02.txt: 1 of 1 videos are not in .*, first YoYo/v_YoYo_g25"):
        ucf101.prepare(root, split=2)


def test_ucf101_bad_input(tmp_path):
    with pytest.raises(ValueError, match="must hold <Class>/v_<Class>_gGG_cCC.avi"):
        ucf101.prepare(tmp_path)
    with pytest.raises(ValueError, match="splits 1, 2 and 3, got 4"):
        ucf101.prepare(tmp_path, split=4)
    with pytest.raises(ValueError, match="split 2 needs the official files"):
        ucf101.prepare(tmp_path, split=2)
    touch(tmp_path, "YoYo/v_YoYo.avi")
    with pytest.raises(ValueError, match="v_YoYo.avi: expected a name like"):
        ucf101.prepare(tmp_path)


def test_k600_class_folders_and_flat(tmp_path, caplog):
    touch(tmp_path, "train/abseiling/a_000001_000011.mp4", "train/b_000001_000011.webm", "train/notes.txt",
          "val/abseiling/c_000001_000011.MP4", "test/d_000001_000011.mp4")
    touch(tmp_path, "train/abseiling/e_000001_000011.mp4", content=b"")
    with caplog.at_level(logging.WARNING):
        k600.prepare(tmp_path)
    assert read_annotations(tmp_path / "train.txt") == [("train/abseiling/a_000001_000011.mp4", "abseiling"),
                                                        ("train/b_000001_000011.webm", "")]
    assert read_annotations(tmp_path / "val.txt") == [("val/abseiling/c_000001_000011.MP4", "abseiling")]
    assert read_annotations(tmp_path / "test.txt") == [("test/d_000001_000011.mp4", "")]
    assert "left out 2 files: 1 .txt, 1 empty" in caplog.text


def test_k600_labels_of_the_nearest_csv(tmp_path, monkeypatch):
    root = tmp_path / "k600"
    touch(root, "train/a_000001_000011.mp4", "val/b_000001_000011.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    touch(root, "annotations/train.csv", content=f"{header}archery,a,1,11,train\narchery,b,1,11,val\n".encode())
    touch(tmp_path, "k700.csv", content=f"{header}shooting bow,a,1,11,train\n".encode())
    touch(tmp_path, "notes.csv", content=b"caf\xe9,price\n")
    k600.prepare(root)
    assert read_annotations(root / "train.txt") == [("train/a_000001_000011.mp4", "archery")]
    touch(root, "annotations/train.csv", content=f"{header}archery,a,1:05,11,train\n".encode())
    with pytest.raises(ValueError, match=r"train.csv, line 2: time_start and time_end must be seconds, got '1:05' and"):
        k600.prepare(root)


def test_k600_bad_input(tmp_path):
    touch(tmp_path, "train/x/a_000001_000011.mp4")
    with pytest.raises(ValueError, match="val holds no videos"):
        k600.prepare(tmp_path)
    touch(tmp_path, "val/y/a_000001_000011.mkv")      # the same video in another container
    with pytest.raises(ValueError, match="in both the training and the validation list, first 'a_000001"):
        k600.prepare(tmp_path)


@pytest.mark.parametrize("split, title", [("train", "training"), ("val", "validation")])
def test_k600_test_videos_in_another_split_are_refused(tmp_path, split, title):
    touch(tmp_path, "train/x/a_000001_000011.mp4", "val/x/b_000001_000011.mp4", "test/c_000001_000011.mp4")
    k600.prepare(tmp_path)
    touch(tmp_path, f"{split}/x/c_000001_000011.mp4")
    with pytest.raises(ValueError, match=f"in both the {title} and the test list, first 'c_000001"):
        k600.prepare(tmp_path)


def test_procgen_is_reproducible_and_windows_hold_no_restart():
    first, second = (list(procgen.render("starpilot", "train", 3)) for _ in range(2))
    assert [level for level, _ in first] == [level for level, _ in second]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, second))
    assert len({level for level, _ in first}) == 3
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    starts = np.zeros(64, bool)
    starts[[0, 24, 55]] = True
    assert {procgen._pick_window(noise, starts, np.random.default_rng(seed)) for seed in range(9)} == {0, 24}
    assert procgen._pick_window(noise * 0, starts, np.random.default_rng(0)) is None


def test_procgen_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one clip for each of the 12 games, got 12 training and 5"):
        procgen.prepare(tmp_path, 12, 5)
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(ModuleNotFoundError, match="run: pip install --no-deps procgen2==0.10.7"):
        procgen.prepare(tmp_path, 12, 12)
    assert not (tmp_path / "train.txt").exists()
