"""Clips of annotated video files as a map-style data set.

Training draws one random clip of a file; evaluation takes the centre clip, or several evenly spaced ones.
Class ids are places in the sorted names of the training list.
Bad files raise VideoError unless `max_bad_files` > 0. Then each is logged and counted once by all
DataLoader workers of a process; training takes the next readable file instead, evaluation leaves the clip out.
Legend: B batch, C channels, T H W pixels.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from nbp.config import DataConfig
from nbp.data import cut
from nbp.data.annotations import annotations_sha256, classes_of, files_sha256, folder_of, read_annotations
from nbp.data.classes import class_text
from nbp.data.clips import RESIZES, fit_size, flip, frames_to_bytes, frames_to_video
from nbp.data.video_io import READERS, VideoError

# Item number, or (item number, number of frames, seed of the random choices).
Key = int | tuple[int, int, int]

log = logging.getLogger(__name__)


class Facts(TypedDict):
    """What is known of an item without decoding it."""

    label: Tensor   # int64, -1 without a class
    text: str       # the class name as words
    path: str       # relative to the root
    item: int       # number of the clip


class Sample(Facts):
    """An item: a clip and its facts."""

    video: Tensor   # float32 (C, T, H, W) in [0, 1]; uint8 of a set with `as_bytes`


class Batch(TypedDict):
    """Items of a batch, collated."""

    video: Tensor   # float32 (B, C, T, H, W) in [0, 1]
    label: Tensor   # int64 (B,)
    item: Tensor    # int64 (B,)
    text: list[str]
    path: list[str]


def class_names(data: DataConfig) -> list[str]:
    """Class names of a data set in id order; empty if it has no labels.

    Args:
        data: its lists are relative to `data.root`.
    """
    return classes_of(read_annotations(Path(data.root) / data.train_list, data.root))


class BadFiles:
    """Files found unreadable, counted by all DataLoader workers of a process together, forked or spawned.

    Args:
        num_files: how many there are.
        allowed: how many of them may be bad.
    """

    def __init__(self, num_files: int, allowed: int) -> None:
        self._bad, self._allowed = torch.zeros(num_files, dtype=torch.bool).share_memory_(), allowed

    @property
    def count(self) -> int:
        """Bad files so far."""
        return int(self._bad.sum())

    def __contains__(self, number: int) -> bool:
        return bool(self._bad[number])

    def recall(self, numbers: Sequence[int]) -> None:
        """Take files for bad that were found so before."""
        self._bad[list(numbers)] = True

    def add(self, number: int, error: VideoError) -> None:
        """Count and log a bad file; raises its error where the allowance is spent."""
        if self.count >= self._allowed:
            raise error
        self._bad[number] = True
        log.warning("bad file %d of at most %d: %s", self.count, self._allowed, error)


class VideoDataset(torch.utils.data.Dataset):
    """Clips of one split; an item is a `Sample`.

    Args:
        data: `train_list` and `val_list` are relative to `root`.
        split: "train" or "val", which list.
        train: random clip, crop and flip; False: fixed places and the centre crop.
        clips_per_video: items per file, evenly spaced when `train` is False.
        strict: refuse damaged frames that the decoder would otherwise paint over.
        as_bytes: `video` stays uint8, for loaders that hand bytes on.

    Raises:
        ValueError: unknown split or reader, a missing or empty list, or a class that the training list lacks.
    """

    def __init__(self, data: DataConfig, split: str, train: bool, clips_per_video: int = 1,
                 strict: bool = False, as_bytes: bool = False) -> None:
        lists = {"train": data.train_list, "val": data.val_list}
        if split not in lists:
            raise ValueError(f"split is {split!r}; accepted: {', '.join(lists)}")
        if data.reader not in READERS:
            raise ValueError(f"data.reader is {data.reader!r}; accepted: {', '.join(READERS)}")
        if data.resize not in RESIZES:
            raise ValueError(f"data.resize is {data.resize!r}; accepted: {', '.join(RESIZES)}")
        if clips_per_video < 1:
            raise ValueError(f"clips_per_video must be at least 1, got {clips_per_video}")
        self.data, self.split, self.train, self.clips_per_video = data, split, train, clips_per_video
        self.strict, self.as_bytes = strict, as_bytes
        self.rows = read_annotations(Path(data.root) / lists[split], data.root, Path(data.root) / data.train_list)
        self.root = folder_of(data.root, self.rows)
        self.classes = classes_of(self.rows) if split == "train" else class_names(data)
        self._ids = {name: number for number, name in enumerate(self.classes)}
        unknown = sorted({label for _, label in self.rows if label} - set(self.classes))
        if unknown:
            raise ValueError(f"{lists[split]}: classes that {data.train_list} lacks: {', '.join(unknown)}")
        self._bad = BadFiles(len(self.rows), data.max_bad_files)

    def __len__(self) -> int:
        return len(self.rows) * self.clips_per_video

    @property
    def num_bad_files(self) -> int:
        """Files found unreadable so far, by all workers of this process."""
        return self._bad.count

    def __getitem__(self, key: Key) -> Sample | None:
        """Item `key`, or (item, num_frames, seed) for another clip length and fixed random choices.

        A plain number draws the random choices from torch's generator, which DataLoader seeds per worker and epoch.

        Returns:
            `Sample`; None for a bad file in evaluation, within the allowance.

        Raises:
            VideoError: the file cannot be used and the allowance of `max_bad_files` is spent.
        """
        item, num_frames, seed = key if isinstance(key, tuple) else (key, self.data.num_frames, None)
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        seed = int(torch.randint(2 ** 62, ())) if seed is None else seed
        for step in range(len(self.rows)):
            current = (item + step * self.clips_per_video) % len(self)
            number = current // self.clips_per_video
            if number not in self._bad:
                try:
                    # Seeded anew for each file: what is drawn depends on none that was found bad before.
                    return self._read(current, num_frames, torch.Generator().manual_seed(seed))
                except VideoError as error:
                    self._bad.add(number, error)
            if not self.train:
                return None
        raise ValueError(f"{self.data.root}: none of the {len(self.rows)} files can be read")

    def recall_bad(self, items: Iterable[int], folder: str | Path) -> None:
        """Count the files of items that an earlier run left out of `folder` as bad. ValueError: more than
        `max_bad_files`."""
        numbers = sorted({item // self.clips_per_video for item in items})
        if len(numbers) > self.data.max_bad_files:
            raise ValueError(f"{folder} lacks {len(numbers)} files that were bad, first {self.rows[numbers[0]][0]}; "
                             f"max_bad_files is {self.data.max_bad_files}: remove it, and tokenize again once they are "
                             "mended or out of the list")
        self._bad.recall(numbers)

    def digests(self) -> dict[str, object]:
        """What tells its list, and the files of it, from others of the same names."""
        return {"annotations_sha256": annotations_sha256(self.rows), "files_sha256": files_sha256(self.root, self.rows)}

    def clip_names(self) -> list[object]:
        """What tells this set of clips from another: path and class of each file, in order, and clips of each."""
        return [*self.rows, self.clips_per_video]

    def facts(self, item: int) -> Facts:
        """What is known of an item without decoding it, as in the item itself."""
        name, label = self.rows[item // self.clips_per_video]
        return {"label": torch.tensor(self._ids.get(label, -1)), "text": class_text(label), "path": name, "item": item}

    def file(self, item: int) -> Path:
        """The file that an item is cut from."""
        return self.root / self.rows[item // self.clips_per_video][0]

    def _read(self, item: int, num_frames: int, generator: torch.Generator) -> Sample:
        def drawn(count: int) -> int:
            return int(torch.randint(max(1, count), (), generator=generator))

        place = drawn if self.train else cut.spaced(item % self.clips_per_video, self.clips_per_video)
        frames = cut.read_clip(self.file(item), num_frames, self.data.fps, place, self.data.reader, self.strict)
        frames = (random_crop(frames, self.data, generator) if self.train else
                  fit_size(frames, self.data.size, self.data.resize))
        return {"video": (frames_to_bytes if self.as_bytes else frames_to_video)(frames), **self.facts(item)}


def random_crop(frames: np.ndarray, data: DataConfig, generator: torch.Generator) -> np.ndarray:
    """Training crop and mirroring of frames (T, H, W, C), as `data.resolution`, `resize` and `flip` say."""
    position, coin = torch.rand(2, generator=generator).tolist()
    frames = fit_size(frames, data.size, data.resize, position)
    return flip(frames) if data.flip and coin < 0.5 else frames


def evaluation_batches(dataset: VideoDataset, batch_size: int, num_workers: int = 0, rank: int = 0, world: int = 1,
                       first_item: int = 0, max_items: int | None = None) -> Iterator[Batch]:
    """Yield each clip of an evaluation data set once, over all ranks, without padding or repeats.

    Rank r takes the items r, r + world, ...; the last batch may be smaller, and bad files are left out.

    Args:
        dataset: with `train` False.
        batch_size: clips in a batch.
        num_workers: decoding processes.
        rank, world: this process and the number of processes.
        first_item: items below it are skipped (to resume).
        max_items: items from this number on are left out.
    """
    if dataset.train:
        raise ValueError("evaluation needs a VideoDataset with train=False")
    stop = len(dataset) if max_items is None else min(max_items, len(dataset))
    items = [item for item in range(rank, stop, world) if item >= first_item]
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, items), batch_size, num_workers=num_workers,
                                         collate_fn=collate_present)
    for batch in loader:
        if batch is not None:
            yield batch


def collate_present(samples: list[Sample | None]) -> Batch | None:
    """Collate what could be read; None where nothing could."""
    present = [sample for sample in samples if sample is not None]
    return torch.utils.data.default_collate(present) if present else None
