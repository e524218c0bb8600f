"""The integrity scan: finds damage of every kind, goes on after a stop, survives a decoder that dies."""

import pytest
from videos import die_on_three, encode, numbered

from nbp import prepare
from nbp.data import integrity
from nbp.data.annotations import write_lists
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
