"""The integrity scan: finds damage of every kind, goes on after a stop, survives a decoder that dies."""

import pytest
from videos import die_on_three, encode, numbered

from nbp import prepare
from nbp.data import integrity
from nbp.data.annotations import read_annotations, write_lists
from nbp.data.integrity import check_all, verify
from nbp.data.video_io import VideoError, check_video, write_video


@pytest.fixture(scope="module")
def damaged_set(tmp_path_factory):
    """Four good files and four bad ones: cut short, scrambled in the middle, empty, not a video; one is missing."""
    root = tmp_path_factory.mktemp("damaged")
    frames = numbered(30)
    for name in ("good0", "good1", "scrambled"):
        write_video(root / f"{name}.mp4", frames, fps=10, crf=10)
    encode(root / "good2.avi", frames, "mpeg4", 10, {"bf": "2"})
    encode(root / "good3.avi", frames, "mpeg4", 10)
    encode(root / "cut.avi", frames, "mpeg4", 10)
    content = (root / "cut.avi").read_bytes()
    (root / "cut.avi").write_bytes(content[:len(content) // 2])
    content = bytearray((root / "scrambled.mp4").read_bytes())
    middle = len(content) // 2
    content[middle:middle + 400] = bytes(byte ^ 0xA5 for byte in content[middle:middle + 400])
    (root / "scrambled.mp4").write_bytes(content)
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video")
    names = sorted(path.name for path in root.iterdir())
    write_lists(root, [(name, "a") for name in names if name != "good0.mp4"] + [("missing.mp4", "a")],
                [("good0.mp4", "a")])
    return root


BAD = {"cut.avi", "empty.mp4", "missing.mp4", "scrambled.mp4", "text.mp4"}


def test_every_kind_of_damage_is_listed_and_nothing_else(damaged_set, capsys):
    count, bad = verify(damaged_set, num_workers=2)
    assert count == 9 and set(bad) == BAD
    lines = (damaged_set / "bad_files.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in lines} == BAD and all(line.count("\t") == 1 for line in lines)
    assert "the file is empty" in bad["empty.mp4"] and "no such file" in bad["missing.mp4"]


def test_a_second_scan_reads_only_what_is_new(damaged_set, monkeypatch, tmp_path):
    first = verify(damaged_set, num_workers=2)
    read = []
    monkeypatch.setattr(integrity, "check_all", lambda check, jobs, workers: (
        read.append(job[1]) or (job, check(job)) for job in jobs))
    assert verify(damaged_set) == first and read == []
    record = damaged_set / integrity.RECORD
    lines = [line for line in record.read_text().splitlines() if line]
    record.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])        # stopped in the middle of a line
    assert verify(damaged_set) == first and len(read) == 5
    write_video(damaged_set / "empty.mp4", numbered(30), fps=10)          # repaired
    count, bad = verify(damaged_set)
    assert set(bad) == BAD - {"empty.mp4"} and read[5:] == ["empty.mp4"]
    (damaged_set / "empty.mp4").write_bytes(b"")


def test_a_job_that_kills_its_process_is_found_and_the_rest_goes_on():
    found = dict(check_all(die_on_three, range(8), 2))
    assert found == {job: None if job == 3 else job * 10 for job in range(8)}


def test_the_command(tmp_path, capsys):
    for split in ("train", "val"):
        write_video(tmp_path / split / "abseiling" / f"{split}_id.mp4", numbered(20), fps=10, preset="ultrafast")
    (tmp_path / "train" / "abseiling" / "broken.mp4").write_bytes(b"x" * 100)
    prepare.main(["k600", "--root", str(tmp_path), "--verify", "--num-workers", "1"])
    assert f"decoded 3 files, 1 are bad: {tmp_path / 'bad_files.txt'}" in capsys.readouterr().out
    assert (tmp_path / "bad_files.txt").read_text().startswith("train/abseiling/broken.mp4\t")


def test_what_a_scan_found_can_be_left_out(tmp_path, capsys):
    bad = tmp_path / "bad_files.txt"
    for split in ("train", "val", "test"):
        for name in ("good", "broken"):
            touch(tmp_path / split / "abseiling" / f"{split}_{name}.mp4")
    bad.write_text("".join(f"{split}/abseiling/{split}_broken.mp4\tthe file is empty\n"
                           for split in ("train", "val", "test")))
    prepare.main(["k600", "--root", str(tmp_path), "--exclude", str(bad)])
    assert f"left out 3 files that {bad} names, 0 of which are not there" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        assert read_annotations(tmp_path / f"{split}.txt") == [(f"{split}/abseiling/{split}_good.mp4", "abseiling")]
    with pytest.raises(ValueError, match="none.txt does not exist; .* --verify. writes such a list"):
        prepare.main(["k600", "--root", str(tmp_path), "--exclude", str(tmp_path / "none.txt")])
    with pytest.raises(SystemExit):
        prepare.main(["k600", "--root", str(tmp_path), "--exclude", str(bad), "--verify"])
    assert "rewrites bad_files.txt: run it first, alone" in capsys.readouterr().err
    bad.write_text("")      # a scan that found nothing
    prepare.main(["k600", "--root", str(tmp_path), "--exclude", str(bad)])
    assert len(read_annotations(tmp_path / "train.txt")) == 2


@pytest.mark.parametrize("official", [False, True])
def test_files_of_ucf101_and_of_a_folder_can_be_left_out(tmp_path, official, capsys):
    """Also one that the official split names and that was removed."""
    names = [f"YoYo/v_YoYo_g{group:02d}_c01.avi" for group in (1, 2, 8, 9)]
    for name in names:
        touch(tmp_path / name)
    if official:
        for split, files in (("train", names[2:]), ("test", names[:2])):
            touch(tmp_path / "ucfTrainTestlist" / f"{split}list01.txt", "\n".join(files))
        (tmp_path / names[3]).unlink()
    (tmp_path / "bad.txt").write_text(f"{names[0]}\n{names[3]}\treason\n")
    prepare.main(["ucf101", "--root", str(tmp_path), "--exclude", str(tmp_path / "bad.txt")])
    assert f"names, {int(official)} of which are not there" in capsys.readouterr().out
    assert read_annotations(tmp_path / "train.txt") == [(names[2], "YoYo")]
    assert read_annotations(tmp_path / "val.txt") == [(names[1], "YoYo")]
    prepare.main(["folder", "--root", str(tmp_path), "--exclude", str(tmp_path / "bad.txt")])
    rows = read_annotations(tmp_path / "train.txt") + read_annotations(tmp_path / "val.txt")
    assert sorted(path for path, _ in rows) == names[1:3]


def touch(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_nothing_to_verify(tmp_path):
    with pytest.raises(ValueError, match="prepare the data set first"):
        verify(tmp_path)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        verify(tmp_path, 0)


@pytest.mark.parametrize("name", ["good0.mp4", "good1.mp4", "good2.avi", "good3.avi"])
def test_whole_files_pass(damaged_set, name):
    assert check_video(damaged_set / name).num_frames == 30


def test_a_cut_file_says_where_it_ends(damaged_set):
    with pytest.raises(VideoError, match="cut.avi"):
        check_video(damaged_set / "cut.avi")
