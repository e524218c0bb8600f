import shlex
from pathlib import Path

import pytest

from nbp import prepare
from nbp.config import DataConfig, load_config, load_run
from nbp.config.loading import text_field
from nbp.data.annotations import read_annotations
from nbp.data.sources import procgen
from nbp.data.video_io import probe, read_frames, write_video
from nbp.system.files import read_json


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


def make_videos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_a_folder_of_ones_own_is_split_by_name(tmp_path, capsys):
    names = [f"{label}/deep/{number}.mp4" for label in ("cats", "dogs") for number in range(40)]
    make_videos(tmp_path, *names, "single/a.webm")
    prepare.main(["folder", "--root", str(tmp_path), "--val-share", "0.2", "--resolution", "64"])
    before = {split: set(read_annotations(tmp_path / f"{split}.txt")) for split in ("train", "val")}
    assert len(before["train"]) + len(before["val"]) == 81 and ("single/a.webm", "single") in before["train"]
    for label in ("cats", "dogs"):
        assert 3 <= sum(row[1] == label for row in before["val"]) <= 14, "about a fifth of 40"
    output = capsys.readouterr().out
    assert "model.num_condition_ids=3 'model.grid=[5,8,8]' 'model.block_shape=[1,1,8]'" in output
    assert load_config(DataConfig, tmp_path / "data.yaml").resolution == 64
    make_videos(tmp_path, *[f"dogs/new{number}.mp4" for number in range(40)])
    prepare.main(["folder", "--root", str(tmp_path), "--val-share", "0.2"])
    for split, rows in before.items():
        assert rows <= set(read_annotations(tmp_path / f"{split}.txt")), "new files change no old one's side"


def test_the_printed_commands_of_a_folder_load(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    make_videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "empty.mp4").touch()
    prepare.main(["folder", "--root", str(tmp_path)])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  python")]
    tokenizer, generator = (load_run(words[3], words[4:]) for words in commands)
    assert tokenizer.data.root == generator.data.root == str(tmp_path)
    assert generator.model.condition == "none" and generator.model.num_condition_ids == 0
    make_videos(tmp_path / "large", "x/a.mp4", "x/b.mp4")
    with pytest.raises(ValueError, match="--resolution 250 384 is no multiple of .* stride 8; .* are: 248 384"):
        prepare.main(["folder", "--root", str(tmp_path / "large"), "--resolution", "250", "384"])
    prepare.main(["folder", "--root", str(tmp_path / "large"), "--resolution", "256", "384"])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    model = load_run(words[3], words[4:]).model
    assert model.max_seq_len == model.seq_len == 1 + 5 * 32 * 48


def test_lists_outside_the_root_are_told_in_both_spellings(tmp_path, capsys):
    make_videos(tmp_path / "videos", *(f"YoYo/v_YoYo_g{group:02d}_c01.avi" for group in (1, 8)))
    prepare.main(["ucf101", "--root", str(tmp_path / "videos"), "--out", str(tmp_path / "lists")])
    train, data = capsys.readouterr().out.splitlines()[-2:]
    assert train.startswith(f"for nbp.train: data.root={tmp_path}/videos data.train_list={tmp_path}/lists/train.txt ")
    assert data == "for --data: these in a copy of configs/data/ucf101.yaml, without `data.`"


def test_a_check_of_files_leaves_lists_and_data_config_alone(tmp_path, make_frames, capsys):
    for name in ("x/a.mp4", "x/b.mp4", "x/c.mp4"):
        write_video(tmp_path / name, make_frames(1)[0], 8)
    prepare.main(["folder", "--root", str(tmp_path), "--resolution", "64", "--fps", "8"])
    (tmp_path / "train.txt").write_text("x/b.mp4\tx\n")                  # a split of one's own
    (tmp_path / "val.txt").write_text("x/a.mp4\tx\n")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    prepare.main(["folder", "--root", str(tmp_path), "--verify", "--num-workers", "1"])
    assert before == {path: path.read_bytes() for path in before}
    said = capsys.readouterr().out
    assert (tmp_path / "bad_files.txt").is_file() and "leaves the lists in" in said and "no clip is in both" in said
    (tmp_path / "val.txt").write_text("x/b.mp4\tx\n")
    prepare.main(["folder", "--root", str(tmp_path), "--verify", "--num-workers", "1"])
    assert "1 CLIPS ARE IN BOTH, first x/b.mp4" in capsys.readouterr().out


def test_a_size_that_is_refused_changes_no_list(tmp_path, capsys):
    make_videos(tmp_path, "x/a.mp4", "x/b.mp4")
    with pytest.raises(ValueError, match="--resolution 100 is no multiple"):
        prepare.main(["folder", "--root", str(tmp_path), "--resolution", "100"])
    with pytest.raises(SystemExit):
        prepare.main(["folder", "--root", str(tmp_path), "--resolution", "64", "72", "128"])
    assert "--resolution takes one side, or height and width, got 3 numbers" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("files, arguments, message", [
    (["a.mp4", "x/b.mp4"], [], "1 videos have no class folder, first a.mp4, and others have"),
    (["x/b.mp4", "x/note.txt"], [], "holds 1 videos"),
    (["x/a.mp4", "x/b.mp4"], ["--val-share", "1.5"], "--val-share must lie between 0 and 1, got 1.5"),
])
def test_a_folder_that_cannot_be_split_is_refused(tmp_path, files, arguments, message):
    make_videos(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        prepare.main(["folder", "--root", str(tmp_path), *arguments])


@pytest.mark.parametrize("source", ["folder", "ucf101", "k600"])
def test_a_root_that_is_not_there_is_called_that(tmp_path, source):
    with pytest.raises(ValueError, match=f"nowhere is not a folder; it is where the videos of {source} lie"):
        prepare.main([source, "--root", str(tmp_path / "nowhere")])


def test_a_text_tokenizer_of_class_names(tmp_path):
    from nbp.config import GeneratorConfig
    from nbp.generator.conditions import condition_encoder

    (tmp_path / "classes.txt").write_text("ApplyEyeMakeup\nYoYo\n")
    prepare.main(["text", "--root", str(tmp_path), "--out", str(tmp_path / "words")])
    config = GeneratorConfig(1, 1, 8, 5, [1, 2, 2], [1, 1, 2], "text", "hybrid", num_condition_ids=512, condition_len=8,
                             pad_token=2)
    ids = condition_encoder(config, tmp_path / "words")({"text": ["apply eye makeup", "yo yo"]})
    assert ids.shape == (2, 8) and (ids[:, 0] == 0).all() and ids[1, -1] == 2 and ids.max() < 512
    with pytest.raises(ValueError, match="classes.txt holds no class names"):
        prepare.main(["text", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "words")])


def test_unknown_source(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["imagenet"])
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["2026_11", "1e3", "null", "a #b", "c: d", "[x]", "videos", "ein Ordner", "012"])
def test_printed_fields_mean_what_they_name(root):
    field = text_field("data.root", root)
    config = load_run("configs/tokenizer_folder.yaml", ["trainer.out=X", field])
    assert config.data.root == root and (root in ("videos", "ein Ordner")) is (field == f"data.root={root}")
