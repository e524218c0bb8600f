"""Files that people reported elsewhere, written by ffmpeg 5.1 (`tests/fixtures/cases`) or made here, through what
people type: lists, the scan, training clips and the set that is scored.

Others of these reports are held where their part is: names, hidden files, links, suffixes and UCF-101's lists in
`test_folders`, pointers in `hub/test_any_weights.py`, stored indices in `tokenizer/test_tokenizer.py`, mixed sizes in
`test_evaluate.py`, few validation clips in `test_reconstruct.py`.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from files import LIVE, make, to_pipe

from nbp import prepare
from nbp.config import DataConfig, load_config
from nbp.data import cut, integrity
from nbp.data.dataset import VideoDataset
from nbp.data.video_io import READERS, check_video, probe, read_frames
from nbp.workflows.clip_sources import Cut, open_clips

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
SECONDS = np.arange(100) * 40
MADE = {"sound-longer.mkv": (make, {"sound_s": 6}), "sound-thrice.mp4": (make, {"sound_s": 12}),
        "live.webm": (make, {"options": LIVE["webm"]}), "live.mkv": (to_pipe, {})}
LENGTHS = {**dict.fromkeys(MADE, 100), "dropped.avi": 100, "trim.mp4": 40, "rot90.mp4": 40, "rot180.mp4": 40,
           "rot270.mp4": 40, "sar64_45.mp4": 25}


@pytest.mark.parametrize("name", LENGTHS)
def test_lists_scan_training_and_scoring_agree_on_a_file(tmp_path, capsys, monkeypatch, name):
    if name in MADE:
        maker, how = MADE[name]
        maker(tmp_path / name, times=SECONDS, **how)
    else:
        shutil.copy(CASES / name, tmp_path / name)
    shutil.copy(tmp_path / name, tmp_path / f"other{Path(name).suffix}")
    count = LENGTHS[name]
    assert (probe(tmp_path / name).num_frames, probe(tmp_path / name).fps) == (count, 25)
    assert check_video(tmp_path / name).num_frames == len(read_frames(tmp_path / name, range(count))) == count
    monkeypatch.setattr(integrity, "check_all", lambda check, jobs, _: ((job, check(job)) for job in jobs))
    prepare.main(["folder", "--root", str(tmp_path), "--verify", "--num-workers", "1", "--resolution", "16"])
    assert "decoded 2 files, 0 are bad" in capsys.readouterr().out
    dataset = VideoDataset(load_config(DataConfig, tmp_path / "data.yaml"), "train", train=True)
    assert all(dataset[0, 17, seed]["video"].shape == (3, 17, 16, 16) for seed in range(15))
    asked = []
    monkeypatch.setattr(cut, "read_frames", lambda path, indices, *how: (
        asked.append(indices[0]) or read_frames(path, indices, *how)))
    assert [len(clip) for clip in open_clips(tmp_path, Cut(17))] == [17, 17]
    assert asked == 2 * [(count - 17) // 2]


def test_an_empty_chunk_of_avi_keeps_the_picture_before_it():
    path = CASES / "dropped.avi"
    for index, grey in ((12, 39), (30, 64), (60, 136)):
        assert np.abs(read_frames(path, [index])[0].mean((0, 1)) - grey).max() < 1
        assert np.array_equal(read_frames(path, range(index + 1))[index], read_frames(path, [index])[0])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name, shape, first, last", [
    ("rot90", (128, 96), "red", "blue"), ("rot180", (96, 128), "blue", "red"), ("rot270", (128, 96), "blue", "red")])
def test_phones_turn_pictures_by_a_flag(name, shape, first, last, reader):
    pytest.importorskip("decord")
    info, frames = probe(CASES / f"{name}.mp4"), read_frames(CASES / f"{name}.mp4", range(17), reader)
    assert (info.height, info.width) == shape and frames.shape == (17, *shape, 3)
    edges = (frames[:, :, 5], frames[:, :, 90]) if shape[0] > shape[1] else (frames[:, 5], frames[:, 90])
    for pixels, colour in zip(edges, (first, last)):
        assert (pixels[..., 0 if colour == "red" else 2] > 200).all()
        assert (pixels[..., 2 if colour == "red" else 0] < 50).all()


def test_a_disc_is_round_where_pixels_are_not_square(tmp_path):
    shutil.copy(CASES / "sar64_45.mp4", tmp_path / "a.mp4")
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("a.mp4\n")
    data = DataConfig("disc", str(tmp_path), "train.txt", "val.txt", 64)
    frame = VideoDataset(data, "val", train=False)[0]["video"][0, 0] > 0.5   # (64, 64)
    assert abs(int(frame.any(0).sum()) - 40) <= 1 and abs(int(frame.any(1).sum()) - 40) <= 1
