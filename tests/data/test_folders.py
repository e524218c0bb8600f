"""Folders and lists as people have them: linked, hidden, misnamed, divided, written by other tools."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nbp import prepare
from nbp.config import DataConfig, load_config
from nbp.data import integrity
from nbp.data.annotations import classes_of, read_annotations, read_lines, write_annotations
from nbp.data.dataset import VideoDataset
from nbp.data.images import ImageDataset
from nbp.data.video_io import READERS, VideoError, read_frames, write_video
from nbp.data.walk import find_files, split_folders
from nbp.workflows.clip_sources import Cut, open_clips


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Bytes of a video of 20 frames."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None] * 8 + np.zeros((20, 16, 16, 3), np.uint8)
    write_video(path, frames, 25, preset="ultrafast")
    return path.read_bytes()


@pytest.fixture
def put(tmp_path, content):
    """Function(names...) that puts the video there."""
    def place(*names, data=content):
        for name in names:
            path = os.path.join(os.fsencode(tmp_path), name if isinstance(name, bytes) else os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
    return place


def prepared(root, *arguments, source="folder"):
    """Rows of both lists after the command, each of which names an existing file."""
    prepare.main([source, "--root", str(root), *arguments])
    rows = [row for name in ("train", "val") for row in read_annotations(root / f"{name}.txt")]
    assert all((root / clip).is_file() for clip, _ in rows)
    return rows


def test_links_are_followed_and_a_circle_is_an_error(tmp_path, put):
    put("elsewhere/dance/0.mp4", "elsewhere/dance/1.mp4", "videos/a/0.mp4", "videos/a/1.mp4")
    (tmp_path / "videos/dance").symlink_to("../elsewhere/dance")
    (tmp_path / "videos/a/2.mp4").symlink_to("0.mp4")
    assert len(prepared(tmp_path / "videos")) == 5 and len(open_clips(tmp_path / "videos", Cut(5))) == 5
    put("k/train/x/a.mp4", "k/elsewhere/b.mp4")
    (tmp_path / "k/val").symlink_to("elsewhere")
    (tmp_path / "k/elsewhere").rename(tmp_path / "other")
    (tmp_path / "k/val").unlink()
    (tmp_path / "k/val").symlink_to("../other")
    prepare.main(["k600", "--root", str(tmp_path / "k")])
    assert [clip for clip, _ in read_annotations(tmp_path / "k/val.txt")] == ["val/b.mp4"]
    (tmp_path / "videos/a/above").symlink_to("..")
    for run in (lambda: prepared(tmp_path / "videos"), lambda: open_clips(tmp_path / "videos")):
        with pytest.raises(ValueError, match=r"a/above is a link back to .*videos, .* remove the link"):
            run()
    (tmp_path / "videos/a/above").unlink()   # what the message says
    assert len(prepared(tmp_path / "videos")) == 5


def test_hidden_and_system_files_are_no_data(tmp_path, put, caplog):
    put(*[f"{folder}/{n}.mp4" for folder in ("a", "b", ".Trash-1000/files") for n in range(4)])
    put(*[f"{folder}/._{n}.mp4" for folder in ("__MACOSX/a", "b") for n in range(4)], data=b"\0\5\26\7Mac OS X")
    for name, target in (("gone", "nowhere"), ("itself", "itself"), ("one", "two"), ("two", "one")):
        (tmp_path / f"a/{name}.mp4").symlink_to(f"{target}.mp4")
    (tmp_path / ".Trash-1000/above").symlink_to("..")
    put("a/empty.mp4", data=b"")
    with caplog.at_level(logging.WARNING):
        rows = prepared(tmp_path)
    assert len(rows) == 8 and {label for _, label in rows} == {"a", "b"}
    assert "left out 17 files: 4 broken link, 1 empty, 12 hidden or system" in caplog.text
    assert len(open_clips(tmp_path, Cut(5))) == 8


def test_every_suffix_that_is_read_is_found_and_others_are_counted(tmp_path, put, caplog):
    put("a/0.m4v", "a/1.M4V", "b/0.MPG", "b/1.mpg", "c/0.mp4", "c/1.mov")
    put("c/info.json", "c/0.srt", "c/1.srt", data=b"text")
    with caplog.at_level(logging.WARNING):
        assert len(prepared(tmp_path)) == 6
        assert len(open_clips(tmp_path, Cut(5))) == 6
    assert caplog.text.count("left out 3 files: 1 .json, 2 .srt") == 2


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "TEST"), ("train", "test")])
def test_folders_for_training_and_validation_are_the_split(tmp_path, put, names, caplog):
    for number, name in enumerate(names):
        put(*[f"{name}/{label}/{number}{n}.mp4" for label in ("a", "b") for n in range(3 - number)])
    rows = prepared(tmp_path)
    assert {clip.split("/")[0] for clip, _ in rows} == set(names[:2]) and {label for _, label in rows} == {"a", "b"}
    assert (tmp_path / "test.txt").exists() == (len(names) == 3)
    assert len(open_clips(tmp_path, Cut(5))) == 4 and len(open_clips(tmp_path, Cut(5), "train")) == 6
    put("tokens/train/meta.json", data=b"{}")      # what holds no clips is no class
    assert len(split_folders(tmp_path)) == len(names)
    put("0.mp4", "1.mp4")
    assert prepared(tmp_path) == rows
    assert f"left out 2 videos that are in none of its folders {', '.join(sorted(names))}, first 0.mp4" in caplog.text
    for clip in ("0.mp4", "1.mp4"):
        (tmp_path / clip).unlink()
    put("car/0.mp4", "car/1.mp4")     # then train is something that rails carry
    assert split_folders(tmp_path) == {}


def test_two_folders_for_one_split_are_refused(tmp_path, put):
    put("train/a/0.mp4", "val/a/1.mp4", "valid/a/2.mp4")
    with pytest.raises(ValueError, match="has 2 folders for val: val, valid; keep one"):
        prepared(tmp_path)


def test_odd_names_round_trip_or_are_refused_by_name(tmp_path, put):
    odd = ["a/My video\u2028part 1.mp4", "a/next\x85line.mp4", "a/tab-free \x0b.mp4", " dance/0.mp4", " dance/ 1.mp4",
           "b /0 .mp4", "b /1.mp4"]
    put(*odd)
    rows = prepared(tmp_path)
    assert {clip for clip, _ in rows} == set(odd) and {label for _, label in rows} == {"a", " dance", "b "}
    data = load_config(DataConfig, tmp_path / "data.yaml")
    for split in ("train", "val"):
        dataset = VideoDataset(data, split, train=False)
        assert all(dataset[item]["video"].shape == (3, 17, 128, 128) for item in range(len(dataset)))
    assert len(open_clips(tmp_path / "data.yaml", split="train")) + len(open_clips(tmp_path / "data.yaml")) == 7
    put(b"b /caf\xe9.mp4")
    with pytest.raises(ValueError, match=r"caf\\xe9.mp4' is not UTF-8, .*; rename the file"):
        prepared(tmp_path)
    os.rename(os.fsencode(tmp_path) + b"/b /caf\xe9.mp4", tmp_path / "b /café.mp4")
    assert len(prepared(tmp_path)) == 8
    put("b /two\nlines.mp4")
    with pytest.raises(ValueError, match=r"two\\nlines.mp4.* holds a tab or a line break, .*; rename the file"):
        prepared(tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_any_name_is_that_of_a_file(tmp_path, put, monkeypatch, reader):
    """Also where FFmpeg would see a protocol or a pattern."""
    pytest.importorskip("decord")
    names = ["http:0.mp4", "concat:a|b.mp4", "pipe:1.mp4", "50%03d.mp4", "*[0]?.mp4", "-y.mp4", "b\\s.mp4", "'q'.mp4"]
    write_video(tmp_path / "0.mp4", np.zeros((20, 48, 64, 3), np.uint8), 25, preset="ultrafast")
    put(*names, b"caf\xe9.mp4", data=(tmp_path / "0.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in [*names, os.fsdecode(b"caf\xe9.mp4")]:
        assert read_frames(Path(name), [19], reader).shape == (1, 48, 64, 3), name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_any_editor_are_read(tmp_path, encoding, end):
    (tmp_path / "list.txt").write_bytes(end.join(["ä/1.mp4\tä", "", "b.mp4\tb", ""]).encode(encoding))
    if encoding == "utf-16-le":
        with pytest.raises(ValueError, match="list.txt .*; save it as UTF-8"):
            read_annotations(tmp_path / "list.txt")
    else:
        assert read_annotations(tmp_path / "list.txt") == [("ä/1.mp4", "ä"), ("b.mp4", "b")]
    (tmp_path / "latin.txt").write_bytes("ä/1.mp4".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 .*; save it as UTF-8"):
        read_lines(tmp_path / "latin.txt")


def test_spaces_typed_around_names_are_no_part_of_them(tmp_path, put):
    put("a/0.mp4", " b/1.mp4")
    (tmp_path / "list.txt").write_text("a/0.mp4 \t a\n b/1.mp4\t b\n")
    assert read_annotations(tmp_path / "list.txt") == [("a/0.mp4", "a"), (" b/1.mp4", " b")]
    (tmp_path / "list.txt").write_text('"a/0.mp4"\ta\r\na\\0.mp4\ta\n"gone.mp4"\ta\n')
    assert [clip for clip, _ in read_annotations(tmp_path / "list.txt")] == ["a/0.mp4", "a/0.mp4", '"gone.mp4"']
    write_annotations(tmp_path / "list.txt", [(" b/1.mp4", " b")])
    assert read_annotations(tmp_path / "list.txt") == [(" b/1.mp4", " b")]


UCF = [f"v_Archery_g{group:02d}_c01" for group in (1, 2, 8, 9)]


@pytest.mark.parametrize("layout", [
    "Archery/{}.avi", "Archery/{}.mp4", "UCF-101/Archery/{}.avi", "UCF101/videos/archery/{}.webm", "{}.avi",
    "train/Archery/{}.avi"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_ucf101_wherever_its_videos_lie(tmp_path, put, layout, encoding):
    put(*[layout.format(name) for name in UCF])
    (tmp_path / "ucfTrainTestlist").mkdir()
    for name, clips in (("train", UCF[2:]), ("test", UCF[:2])):
        text = "".join(f"Archery/{clip}.avi 1\r\n" for clip in clips)
        (tmp_path / f"ucfTrainTestlist/{name}list01.txt").write_bytes(text.encode(encoding))
    assert prepared(tmp_path, source="ucf101") == [
        (layout.format(name), "Archery") for name in [*UCF[2:], *UCF[:2]]]


def test_ucf101_spelled_otherwise_divided_and_incomplete(tmp_path, put):
    names = [name.replace("Archery", "HandStandPushups") for name in UCF]
    put(*[f"HandStandPushups/{name}.avi" for name in names])
    assert {label for _, label in prepared(tmp_path, source="ucf101")} == {"HandstandPushups"}
    (tmp_path / "ucfTrainTestlist").mkdir()
    for name, clips in (("train", names[2:]), ("test", names[:2])):
        (tmp_path / f"ucfTrainTestlist/{name}list01.txt").write_text(
            "".join(f"HandstandPushups/{clip}.avi 37\n" for clip in clips))
    assert {label for _, label in prepared(tmp_path, source="ucf101")} == {"HandstandPushups"}
    (tmp_path / f"HandStandPushups/{names[0]}.avi").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 videos are not in .*, first HandstandPushups/v_HandStandPushups_g01_c"
                                         r"01.avi; 3 others are, first HandStandPushups/v_HandStandPushups_g02"):
        prepared(tmp_path, source="ucf101")
    divided = tmp_path / "deep/divided"
    put(*[f"deep/divided/{part}/Archery/{name}.avi" for part, name in zip(("train", "train", "val", "test"), UCF)])
    assert [clip.split("/")[0] for clip, _ in prepared(divided, source="ucf101")] == ["train", "train", "val"]
    assert read_annotations(divided / "test.txt") == [(f"test/Archery/{UCF[3]}.avi", "Archery")]


def test_the_lists_of_the_original_release(tmp_path, put):
    videos = [("YoYo", f"v_YoYo_g{group:02d}_c01.avi", 101) for group in (8, 1)]
    videos += [("Archery", f"v_Archery_g{group:02d}_c01.avi", 3) for group in (8, 1)]
    put(*[f"UCF-101/{label}/{name}" for label, name, _ in videos], "k600/val/id_000174_000184.mp4")
    (tmp_path / "annotations").mkdir()
    for name, places in (("ucf_train", (0, 2)), ("ucf_val", (1, 3))):
        rows = [videos[place] for place in places]
        (tmp_path / f"annotations/{name}.txt").write_text(
            "".join(f"UCF-101/{label}/{file}\t{number}\n" for label, file, number in rows))
    (tmp_path / "annotations/k600_val.txt").write_text("k600/val/id_000174_000184.mp4\t0\n")
    annotations = tmp_path / "annotations"
    for root in (tmp_path, tmp_path / "UCF-101"):
        data = DataConfig("ucf", str(root), str(annotations / "ucf_train.txt"), str(annotations / "ucf_val.txt"), 16)
        dataset = VideoDataset(data, "val", train=False)
        assert dataset.classes == ["Archery", "YoYo"]
        facts = [(dataset[item]["text"], int(dataset[item]["label"])) for item in range(2)]
        assert facts == [("yo yo", 1), ("archery", 0)]
    assert len(open_clips(annotations / "ucf_train.txt", Cut(5))[0]) == 5
    assert read_annotations(annotations / "k600_val.txt") == [("k600/val/id_000174_000184.mp4", "")]
    data = DataConfig("k600", str(tmp_path / "k600"), *[str(annotations / "k600_val.txt")] * 2, 16)
    assert VideoDataset(data, "val", train=False)[0]["label"] == -1


def test_kinetics_csv_files_label_flat_folders(tmp_path, put, caplog):
    put("k600/train/-abc_DEF_00_000001_000011.mp4", "k600/train/onlyid12345.mp4",
        "k600/train/unknown_000001_000011.mp4", "k600/val/vvvvvvvvvvv_000174_000184.mp4")
    header = "label,youtube_id,time_start,time_end,split"
    (tmp_path / "train.csv").write_text(f"{header}\nbaking cookies,-abc_DEF_00,1,11,train\n"
                                        '"hand washing, clothes",onlyid12345,3,13,train\n')
    (tmp_path / "k600/val.csv").write_bytes(
        f"\ufeff{header}\r\nbaking cookies,vvvvvvvvvvv,174.0,184.0,val\r\n".encode())
    assert prepared(tmp_path / "k600", source="k600") == [
        ("train/-abc_DEF_00_000001_000011.mp4", "baking cookies"), ("train/onlyid12345.mp4", "hand washing, clothes"),
        ("val/vvvvvvvvvvv_000174_000184.mp4", "baking cookies")]
    assert "left out 1 videos that the csv files do not name, first train/unknown" in caplog.text


@pytest.mark.parametrize("source, names", [
    ("folder", ["a/0.mp4", "a/1.mp4"]), ("k600", ["train/a/0.mp4", "val/a/1.mp4"]),
    ("ucf101", [f"Archery/{UCF[0]}.avi", f"Archery/{UCF[2]}.avi"])])
def test_lists_of_a_root_that_cannot_be_written_go_elsewhere(tmp_path, put, monkeypatch, capsys, source, names):
    put(*[f"root/{name}" for name in names])
    from nbp.system import files

    original = files.write_text

    def refuse(path, text):
        if Path(path).parent == tmp_path / "root":
            raise PermissionError(13, "Permission denied", str(path))
        original(path, text)

    for module in ("nbp.system.files", "nbp.data.annotations", "nbp.data.integrity"):
        monkeypatch.setattr(f"{module}.write_text", refuse)
    with pytest.raises(ValueError, match="root cannot be written: .*; --out FOLDER writes the lists elsewhere"):
        prepare.main([source, "--root", str(tmp_path / "root")])
    monkeypatch.setattr(integrity, "check_all", lambda check, jobs, _: ((job, check(job)) for job in jobs))
    prepare.main([source, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "lists"), "--verify",
                  "--num-workers", "1"])
    assert "decoded 2 files, 0 are bad" in capsys.readouterr().out
    lists = {name: str(tmp_path / "lists" / f"{name}.txt") for name in ("train", "val")}
    data = DataConfig(source, str(tmp_path / "root"), lists["train"], lists["val"], 16)
    assert VideoDataset(data, "train", train=False)[0]["video"].shape == (3, 17, 16, 16)
    if source == "folder":
        assert len(open_clips(tmp_path / "lists/data.yaml")) == 1
    assert sorted(path.name for path in (tmp_path / "root").iterdir() if path.is_file()) == []


@pytest.mark.parametrize("count, share, held", [
    (2, 0.1, 1), (3, 0.1, 1), (3, 0.9, 2), (10, 0.1, 1), (10, 0.5, 5), (29, 0.2, 6)])
def test_a_small_class_gives_exactly_its_share(tmp_path, put, count, share, held):
    put(*[f"{label}/{n}.mp4" for label in "abc" for n in range(count)])
    prepared(tmp_path, "--val-share", str(share))
    labels = [label for _, label in read_annotations(tmp_path / "val.txt")]
    assert [labels.count(label) for label in "abc"] == 3 * [held]


def save_picture(path, size=(8, 12), orientation=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    image.paste((255, 0, 0), (0, 0, size[0], size[1] // 2))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif, **options)


def test_pictures_are_turned_walked_and_counted_as_videos_are(tmp_path, caplog):
    save_picture(tmp_path / "train/a/0.jpg", (12, 8), orientation=6, quality=95)
    save_picture(tmp_path / "train/a/.hidden.jpg")
    save_picture(tmp_path / "train/b/1.png")
    save_picture(tmp_path / "val/c/2.png")
    data = DataConfig("pictures", str(tmp_path), "", "", 8, max_bad_files=1)
    dataset = ImageDataset(data, tmp_path)
    assert dataset.paths == ["train/a/0.jpg", "train/b/1.png"] and "1 hidden or system" in caplog.text
    [turned] = open_clips(tmp_path / "train/a")
    assert turned.shape == (1, 12, 8, 3) and turned[0, 6, 7, 0] > 200 > 50 > turned[0, 6, 0, 0]
    broken = tmp_path / "train/b/1.png"
    content = bytearray(broken.read_bytes())
    for damage in (content[:40], content[:20] + b"\xff" * 30 + content[50:], b"", content.replace(b"IDAT", b"IDAX")):
        broken.write_bytes(damage)
        dataset = ImageDataset(data, tmp_path, None)
        if damage:
            assert dataset[(1, 1, 0)]["path"] == "train/a/0.jpg" and dataset.bad.count == 1
            with pytest.raises(VideoError, match="b/1.png"):
                ImageDataset(DataConfig("pictures", str(tmp_path), "", "", 8), tmp_path)[(1, 1, 0)]
        else:
            assert dataset.paths == ["train/a/0.jpg"]


def test_what_find_files_says(tmp_path, put):
    assert find_files(tmp_path, (".mp4",)).note() == "" and find_files(tmp_path / "nowhere", (".mp4",)).files == []
    put("a.mp4", "b.txt", "train.txt", "noext")
    found = find_files(tmp_path, (".mp4",))
    assert [path.name for path in found.files] == ["a.mp4"]
    assert found.note() == "left out 2 files: 1 .txt, 1 without a suffix"


def test_previews_beside_a_split_are_no_class(tmp_path, put):
    for split in ("train", "val"):
        put(f"{split}/cat/{split}.mp4", f"{split}/dog/{split}.mp4")
    save_picture(tmp_path / "previews" / "a.jpg")
    assert split_folders(tmp_path) == {split: tmp_path / split for split in ("train", "val")}
    prepared(tmp_path)
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog\n"
    (tmp_path / "test.txt").write_text("gone.mp4\tcat\n")          # of a test split that is no more
    prepared(tmp_path)
    assert not (tmp_path / "test.txt").exists()


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    rows = [(f"v{number}.mp4", str(number)) for number in (10, 2, 0, 11)]
    assert classes_of(rows) == ["0", "2", "10", "11"]
    assert classes_of([*rows, ("a.mp4", "x")]) == ["0", "10", "11", "2", "x"]


def test_files_of_lists_relative_to_a_folder_above_are_checked(tmp_path, put, capsys):
    put("orig/cat/a.mp4", "orig/cat/b.mp4")
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / "orig" / f"{split}.txt").write_text(f"orig/cat/{name}.mp4\tcat\n")
    prepare.main(["folder", "--root", str(tmp_path / "orig"), "--verify", "--num-workers", "1"])
    assert "decoded 2 files, 0 are bad" in capsys.readouterr().out
