import pytest

from nbp import prepare
from nbp.data.annotations import read_annotations
from nbp.data.sources import procgen
from nbp.data.video_io import probe, read_frames
from nbp.files import read_json


def test_ucf101_prints_counts(tmp_path, capsys):
    for label, groups in (("Archery", (1, 8, 9)), ("YoYo", (2, 3, 10))):
        for group in groups:
            path = tmp_path / label / f"v_{label}_g{group:02d}_c01.avi"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
    prepare.main(["ucf101", "--root", str(tmp_path)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [["Archery", "2", "1"], ["YoYo", "1", "2"], ["all", "3", "3"]]
    assert len(read_annotations(tmp_path / "train.txt")) == 3


def test_procgen_clips_move_and_levels_are_apart(tmp_path, capsys):
    arguments = ["procgen", "--root", str(tmp_path), "--train-clips", "12", "--val-clips", "12"]
    prepare.main(arguments)
    output = capsys.readouterr().out
    assert "motion train / val" in output and output.count("\n") == 15
    rows = {split: read_annotations(tmp_path / f"{split}.txt") for split in ("train", "val")}
    levels = {split: {int(clip[-11:-4]) for clip, _ in rows[split]} for split in rows}
    assert max(levels["train"]) < 1_000_000 <= min(levels["val"])
    for split in rows:
        assert [label for _, label in rows[split]] == list(procgen.GAMES)
    motions = read_json(tmp_path / "procgen.json")["motion"]
    for clip, game in rows["val"]:
        info = probe(tmp_path / clip)
        assert (info.num_frames, info.fps, info.width, info.height) == (24, 15, 64, 64)
        moved = procgen.motion(read_frames(tmp_path / clip, range(24)))
        assert motions["val"][game] >= procgen.MIN_MOTION and abs(moved - motions["val"][game]) < 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    prepare.main(arguments)
    assert capsys.readouterr().out == output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before


def test_unknown_source(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["imagenet"])
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
