import json
from pathlib import Path

import pytest

from nbp.data.annotations import check_overlap, count_per_class, read_annotations, write_annotations, write_lists
from nbp.data.classes import UCF101_CLASSES, class_text


def test_round_trip(tmp_path):
    rows = [("a/b c.mp4", "YoYo"), ("d.avi", ""), ("e.avi", "Archery")]
    write_annotations(tmp_path / "list.txt", rows)
    assert (tmp_path / "list.txt").read_text() == "a/b c.mp4\tYoYo\nd.avi\t\ne.avi\tArchery\n"
    assert read_annotations(tmp_path / "list.txt") == rows
    assert count_per_class(rows + rows[:1]) == {"": 1, "Archery": 1, "YoYo": 2}


def test_labels_and_blank_lines_are_optional(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\n\n  \nb.mp4\tYoYo\n")
    assert read_annotations(tmp_path / "list.txt") == [("a.mp4", ""), ("b.mp4", "YoYo")]


def test_numbers_behind_a_space_are_classes_wherever_the_list_lies(tmp_path):
    for clip in ("YoYo/a 1.mp4", "Archery/b.mp4"):
        (tmp_path / "videos" / clip).parent.mkdir(parents=True)
        (tmp_path / "videos" / clip).touch()
    (tmp_path / "list.txt").write_text("YoYo/a 1.mp4 1\nArchery/b.mp4 0\n")
    rows = [("YoYo/a 1.mp4", "YoYo"), ("Archery/b.mp4", "Archery")]
    assert read_annotations(tmp_path / "list.txt", tmp_path / "videos") == rows


@pytest.mark.parametrize("train, val, expected", [
    ("a/1.mp4 0\nb/1.mp4 1\n", "a/3.mp4 0\n", [("a/3.mp4", "a")]),
    ("run/cam1/1.mp4 0\nrun/cam2/1.mp4 0\nwalk/cam1/1.mp4 1\n", "run/cam1/2.mp4 0\nwalk/cam2/2.mp4 1\n",
     [("run/cam1/2.mp4", "0"), ("walk/cam2/2.mp4", "1")]),
    ("a/1.mp4 0\nb/1.mp4 0\n", "a/3.mp4 0\n", [("a/3.mp4", "")]),
    ("a/1.mp4\ta\nb/1.mp4\tb\n", "a/3.mp4 0\nb/3.mp4 1\n", [("a/3.mp4", "a"), ("b/3.mp4", "b")]),
])
def test_class_numbers_mean_what_they_mean_in_the_training_list(tmp_path, train, val, expected):
    for name, text in (("train.txt", train), ("val.txt", val)):
        for line in text.splitlines():
            (tmp_path / line.split()[0]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / line.split()[0]).touch()
        (tmp_path / name).write_text(text)
    assert read_annotations(tmp_path / "val.txt", tmp_path, tmp_path / "train.txt") == expected


@pytest.mark.parametrize("rows", [
    [("1/zoe/a.mp4", "1"), ("2/amy/a.mp4", "2"), ("2/bob/b.mp4", "2")], [("0/a.mp4", "0"), ("0/b.mp4", "0")],
    [("1/zoe/a.mp4", "1"), ("2/amy/a.mp4", "2")],
])
def test_folders_named_by_numbers_are_classes_of_that_name(tmp_path, rows):
    (tmp_path / "list.txt").write_text("".join(f"{clip}\t{label}\n" for clip, label in rows))
    assert read_annotations(tmp_path / "list.txt", tmp_path) == rows


@pytest.mark.parametrize("text, message", [
    ("a.mp4\tb\tc\n", "line 1: expected `path<TAB>label`"),
    ("a.mp4\n\tYoYo\n", "line 2: expected `path<TAB>label`"),
    ("\n", "is empty"),
])
def test_bad_lists(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(tmp_path / "list.txt")


def test_unwritable_rows(tmp_path):
    with pytest.raises(ValueError, match="holds a tab or a line break"):
        write_annotations(tmp_path / "list.txt", [("a\tb.mp4", "")])
    with pytest.raises(ValueError, match="no clips for"):
        write_annotations(tmp_path / "list.txt", [])
    assert not list(tmp_path.iterdir())


def test_overlap_is_found(tmp_path):
    train, val = [("a.mp4", "A"), ("b.mp4", "B")], [("c.mp4", "A"), ("b.mp4", "A")]
    with pytest.raises(ValueError, match="1 clips are in both the training and the validation list, first 'b.mp4'"):
        check_overlap(train, val)
    with pytest.raises(ValueError, match="in both"):
        write_lists(tmp_path, train, val)
    assert not list(tmp_path.iterdir())


def test_lists_of_a_data_set(tmp_path):
    write_lists(tmp_path, [("b.mp4", "B"), ("a.mp4", "A")], [("c.mp4", "A")])
    assert (tmp_path / "classes.txt").read_text() == "A\nB\n"
    with pytest.raises(ValueError, match="validation classes without training clips: C"):
        write_lists(tmp_path, [("b.mp4", "B")], [("c.mp4", "C")])


def test_class_texts_equal_the_official_ones():
    recorded = json.loads((Path(__file__).parents[1] / "parity" / "llama_ucf_ids.json").read_text())
    assert list(UCF101_CLASSES) == recorded["classes"]
    assert [class_text(name) for name in UCF101_CLASSES] == recorded["texts"]
    assert class_text("riding_a bike") == "riding a bike" and class_text("") == ""


def test_a_path_a_space_and_a_number_are_a_clip_and_its_class(tmp_path):
    names = ["Archery/a 1.mp4", "YoYo/b.mp4", "YoYo/c 2"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"Archery/a 1.mp4 0\nYoYo/b.mp4 1\n{tmp_path}/YoYo/b.mp4 1\n")
    assert read_annotations(tmp_path / "list.txt") == [
        ("Archery/a 1.mp4", "Archery"), ("YoYo/b.mp4", "YoYo"), (f"{tmp_path}/YoYo/b.mp4", "YoYo")]
    (tmp_path / "list.txt").write_text("YoYo/c 2\nYoYo/b.mp4\n")
    assert read_annotations(tmp_path / "list.txt") == [("YoYo/c 2", ""), ("YoYo/b.mp4", "")], "a name may end so"
    (tmp_path / "list.txt").write_text("gone.mp4 3\n")
    assert read_annotations(tmp_path / "list.txt") == [("gone.mp4 3", "")], "which reading then names"
