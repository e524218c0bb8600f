import logging
from pathlib import Path

import pytest
import torch
from videos import number_of, numbered

from nbp.data.clips import video_to_frames
from nbp.data.dataset import VideoDataset, class_names, evaluation_batches
from nbp.data.video_io import VideoError, write_video


def numbers(sample):
    return [number_of(frame) for frame in video_to_frames(sample["video"])]


def test_items(make_config):
    data = make_config()
    assert class_names(data) == ["Archery", "PlayCello"]
    sample = VideoDataset(data, "val", train=False)[0]
    assert sample["video"].shape == (3, 9, 32, 32) and sample["video"].dtype == torch.float32
    assert 0 <= sample["video"].min() and sample["video"].max() <= 1
    assert sample["label"].dtype == torch.int64 and sample["label"] == 1
    assert (sample["text"], sample["path"]) == ("play cello", "val/PlayCello/0.mp4")


def test_several_clips_of_a_file(make_config):
    dataset = VideoDataset(make_config(), "val", train=False, clips_per_video=3)
    assert len(dataset) == 6
    samples = [dataset[item] for item in range(4)]
    assert [sample["item"] for sample in samples] == [0, 1, 2, 3]
    assert [sample["path"][:8] for sample in samples] == ["val/Play"] * 3 + ["val/Arch"]
    assert not torch.equal(samples[0]["video"], samples[1]["video"])


def test_frame_choice(make_config, dataset_root):
    write_video(dataset_root / "val/PlayCello/0.mp4", numbered(30, 80, 80), fps=10, crf=10)
    data = make_config(resolution=80)
    centre = VideoDataset(data, "val", train=False)
    assert numbers(centre[0]) == list(range(10, 19))
    spaced = VideoDataset(data, "val", train=False, clips_per_video=2)
    assert [numbers(spaced[item])[0] for item in (0, 1)] == [0, 21]
    slow = VideoDataset(make_config(resolution=80, fps=5, num_frames=5), "val", train=False)
    assert numbers(slow[0]) == [10, 12, 14, 16, 18]
    random = VideoDataset(data, "val", train=True)
    starts = {numbers(random[(0, 9, seed)])[0] for seed in range(40)}
    assert min(starts) <= 2 and max(starts) >= 19 and max(starts) <= 21
    assert len(numbers(random[(0, 5, 0)])) == 5


def test_training_choices_are_reproducible(make_config):
    dataset = VideoDataset(make_config(flip=True), "train", train=True)
    assert torch.equal(dataset[(0, 9, 5)]["video"], dataset[(0, 9, 5)]["video"])
    assert not torch.equal(dataset[(0, 9, 5)]["video"], dataset[(0, 9, 6)]["video"])
    torch.manual_seed(3)
    first = [dataset[0]["video"], dataset[0]["video"]]
    torch.manual_seed(3)
    assert torch.equal(dataset[0]["video"], first[0]) and not torch.equal(first[0], first[1])


def test_bytes_are_what_the_pixels_are_made_of(make_config):
    config = make_config(flip=True)
    pixels, stored = (VideoDataset(config, "train", train=True, as_bytes=as_bytes) for as_bytes in (False, True))
    for key in [(0, 9, seed) for seed in range(4)]:
        assert stored[key]["video"].dtype == torch.uint8
        assert torch.equal(stored[key]["video"].float().div(255), pixels[key]["video"])


def test_flip_only_when_asked(make_config, dataset_root):
    write_video(dataset_root / "val/PlayCello/0.mp4", numbered(9, 80, 80), fps=10, crf=10)
    plain = VideoDataset(make_config(resolution=80), "val", train=True)
    mirrored = VideoDataset(make_config(resolution=80, flip=True), "val", train=True)
    pairs = [(plain[(0, 9, seed)]["video"], mirrored[(0, 9, seed)]["video"]) for seed in range(12)]
    same = [torch.equal(a, b) for a, b in pairs]
    assert 0 < sum(same) < 12
    assert all(torch.equal(a.flip(-1), b) for (a, b), equal in zip(pairs, same) if not equal)


def test_short_files(make_config, dataset_root):
    write_video(dataset_root / "val/PlayCello/0.mp4", numbered(6, 80, 80), fps=10, crf=10)
    data = make_config(resolution=80)
    assert numbers(VideoDataset(data, "val", train=False)[0]) == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    write_video(dataset_root / "val/PlayCello/0.mp4", numbered(4, 80, 80), fps=10)
    with pytest.raises(VideoError, match=r"val/PlayCello/0.mp4: too short: 4 frames"):
        VideoDataset(data, "val", train=False)[0]


def test_a_bad_file_raises_with_its_path(make_config, dataset_root):
    (dataset_root / "train/Archery/1.mp4").write_bytes(b"")
    dataset = VideoDataset(make_config(), "train", train=True)
    bad = [row[0] for row in dataset.rows].index("train/Archery/1.mp4")
    with pytest.raises(VideoError, match="train/Archery/1.mp4: the file is empty"):
        dataset[bad]
    loader = torch.utils.data.DataLoader(dataset, num_workers=1)
    with pytest.raises(VideoError, match="train/Archery/1.mp4: the file is empty"):
        list(loader)


def test_skipping_is_bounded_counted_and_logged(make_config, dataset_root, caplog):
    for clip in (0, 1):
        (dataset_root / f"train/Archery/{clip}.mp4").write_bytes(b"broken")
    dataset = VideoDataset(make_config(max_bad_files=2), "train", train=True)
    with caplog.at_level(logging.WARNING):
        paths = {dataset[item]["path"] for item in range(len(dataset)) for _ in range(2)}
    assert "train/Archery/0.mp4" not in paths and len(paths) == 4
    assert dataset.num_bad_files == 2 and len(caplog.records) == 2
    assert "bad file 1 of at most 2: " in caplog.text and "train/Archery/0.mp4" in caplog.text
    strict = VideoDataset(make_config(max_bad_files=1), "train", train=True)
    with pytest.raises(VideoError, match="train/Archery/1.mp4"):
        [strict[item] for item in range(len(strict))]


def test_workers_count_bad_files_together(make_config, dataset_root):
    for clip in (0, 1):
        (dataset_root / f"train/Archery/{clip}.mp4").write_bytes(b"broken")
    dataset = VideoDataset(make_config(max_bad_files=2), "train", train=False)
    items = [item for batch in evaluation_batches(dataset, 2, num_workers=2) for item in batch["item"].tolist()]
    good = [number for number, row in enumerate(dataset.rows) if row[0].split("/", 1)[1] not in
            ("Archery/0.mp4", "Archery/1.mp4")]
    assert items == good and dataset.num_bad_files == 2


@pytest.mark.parametrize("world, batch_size", [(1, 4), (2, 3), (3, 1), (8, 2)])
def test_ranks_see_every_clip_once(make_config, world, batch_size):
    dataset = VideoDataset(make_config(), "train", train=False, clips_per_video=2)
    seen = [item for rank in range(world) for batch in evaluation_batches(dataset, batch_size, rank=rank, world=world)
            for item in batch["item"].tolist()]
    assert sorted(seen) == list(range(12))


def test_evaluation_can_resume_and_stop_early(make_config):
    dataset = VideoDataset(make_config(), "train", train=False)
    rest = [batch["item"].tolist() for batch in evaluation_batches(dataset, 2, first_item=2, max_items=5)]
    assert rest == [[2, 3], [4]]
    with pytest.raises(ValueError, match="train=False"):
        next(evaluation_batches(VideoDataset(make_config(), "train", train=True), 2))


def test_loading_works_in_spawned_workers(make_config):
    dataset = VideoDataset(make_config(), "val", train=True)
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, multiprocessing_context="spawn")
    assert next(iter(loader))["video"].shape == (2, 3, 9, 32, 32)


def test_sets_without_labels(make_config, dataset_root):
    (dataset_root / "plain.txt").write_text("val/PlayCello/0.mp4\nval/Archery/0.mp4\t\n")
    dataset = VideoDataset(make_config(train_list="plain.txt", val_list="plain.txt"), "train", train=False)
    assert dataset.classes == [] and len(dataset) == 2
    assert dataset[1]["label"] == -1 and dataset[1]["text"] == ""


@pytest.mark.parametrize("changes, arguments, message", [
    ({}, {"split": "test"}, "split is 'test'; accepted: train, val"),
    ({"reader": "opencv"}, {}, "data.reader is 'opencv'; accepted: pyav, decord"),
    ({"resize": "pad"}, {}, "data.resize is 'pad'; accepted: aspect, squash"),
    ({"val_list": "none.txt"}, {}, "none.txt does not exist"),
    ({}, {"clips_per_video": 0}, "clips_per_video must be at least 1"),
])
def test_bad_settings_stop_at_once(make_config, changes, arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoDataset(make_config(**changes), **({"split": "val", "train": False} | arguments))


def test_a_class_that_training_lacks_is_refused(make_config, dataset_root):
    (dataset_root / "val.txt").write_text("val/PlayCello/0.mp4\tYoYo\n")
    with pytest.raises(ValueError, match="classes that train.txt lacks: YoYo"):
        VideoDataset(make_config(), "val", train=False)
    assert Path(dataset_root / "classes.txt").read_text() == "Archery\nPlayCello\n"
