"""Kinetics-600: walks `<root>/{train,val,test}/` and writes its annotation lists.

A video in a class folder (`train/abseiling/ID_000001_000011.mp4`) is labelled with the folder's name, one directly
in the split's folder has no label. Empty files, the trace of a failed download, are left out and counted.
Source: https://github.com/cvdfoundation/kinetics-dataset
"""

import itertools
import logging
from pathlib import Path, PurePosixPath

from nbp.data.annotations import Row, check_overlap, write_annotations, write_lists

TITLES = {"train": "training", "val": "validation", "test": "test"}
SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")

log = logging.getLogger(__name__)


def prepare(root: str | Path, exclude: frozenset[str] = frozenset()) -> None:
    """Write train.txt, val.txt, classes.txt and, if there is a test folder, test.txt into `root`.

    Args:
        root: folder with one folder per split.
        exclude: paths relative to `root` that no list gets.

    Raises:
        ValueError: a split without videos, or a file name that two splits share.
    """
    root = Path(root)
    rows = {split: _walk(root, split, exclude) for split in TITLES if (root / split).is_dir()}
    for split in ("train", "val"):
        if not rows.get(split):
            raise ValueError(f"{root / split} holds no videos ({', '.join(SUFFIXES)})")
    # The name of a file is its YouTube id and time span, so a leak shows there, whatever the folder.
    names = {split: [(PurePosixPath(clip).name, label) for clip, label in found] for split, found in rows.items()}
    for one, other in itertools.combinations(names, 2):
        check_overlap(names[one], names[other], (TITLES[one], TITLES[other]))
    if rows.get("test"):
        write_annotations(root / "test.txt", rows["test"])
    write_lists(root, rows["train"], rows["val"])


def _walk(root: Path, split: str, exclude: frozenset[str]) -> list[Row]:
    rows, empty = [], []
    for path in sorted((root / split).rglob("*")):
        clip = path.relative_to(root).as_posix()
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or clip in exclude:
            continue
        if path.stat().st_size == 0:
            empty.append(path)
            continue
        folders = path.relative_to(root / split).parts[:-1]
        rows.append((clip, folders[0] if folders else ""))
    if empty:
        log.warning("%s: left out %d empty files, first %s", root / split, len(empty), empty[0])
    return rows
