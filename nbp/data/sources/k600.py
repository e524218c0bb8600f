"""Kinetics-600: walks `<root>/{train,val,test}/` and writes its annotation lists.

A video in a class folder (`train/abseiling/ID_000001_000011.mp4`) is labelled with the folder's name. One directly in
the split's folder gets its label from the csv files of Kinetics (`label,youtube_id,time_start,time_end,split`) in or
beside the root, and has none where there are no such files.
Source: https://github.com/cvdfoundation/kinetics-dataset
"""

import csv
import itertools
import logging
from pathlib import Path, PurePosixPath

from nbp.data.annotations import Row, check_overlap, read_lines, write_lists
from nbp.data.sources.folder import list_videos
from nbp.data.video_file import VIDEO_SUFFIXES
from nbp.data.walk import split_folders

TITLES = {"train": "training", "val": "validation", "test": "test"}

log = logging.getLogger(__name__)


def prepare(root: str | Path, exclude: frozenset[str] = frozenset(), out: str | Path | None = None) -> None:
    """Write train.txt, val.txt, classes.txt and, if there is a test folder, test.txt.

    Args:
        root: folder with one folder per split.
        exclude: paths relative to `root` that no list gets.
        out: folder of the lists; None: `root`.

    Raises:
        ValueError: a split without videos, or a file name that two splits share.
    """
    root = Path(root)
    folders = split_folders(root)
    labels = _labels(root)
    rows = {split: _labelled(list_videos(root, folders.get(split, root / split), exclude), labels)
            for split in TITLES if (folders.get(split, root / split)).is_dir()}
    for split in ("train", "val"):
        if not rows.get(split):
            raise ValueError(f"{root / split} holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    # The name of a file is its YouTube id and time span, so a leak shows there, whatever the folder.
    names = {split: [(PurePosixPath(clip).stem, label) for clip, label in found] for split, found in rows.items()}
    for one, other in itertools.combinations(names, 2):
        check_overlap(names[one], names[other], (TITLES[one], TITLES[other]))
    write_lists(out or root, rows["train"], rows["val"], rows.get("test", ()))


def _labels(root: Path) -> dict[str, str]:
    """{file name without suffix: label} of the csv files of Kinetics in the root, in `annotations/`, or beside the
    root; where several name a file the first of these folders counts."""
    labels: dict[str, str] = {}
    folders = [root, root / "annotations", root.parent, root.parent / "annotations"]
    for path in [path for folder in folders for path in sorted(folder.glob("*.csv"))]:
        with open(path, "rb") as file:
            header = file.readline().replace(b"\0", b"")      # of UTF-16
            if not all(column in header for column in (b"label", b"youtube_id", b"time_start", b"time_end")):
                continue        # of something else
        for number, row in enumerate(csv.DictReader(read_lines(path)), 2):
            if row.get("label") and row.get("youtube_id") and row.get("time_start") and row.get("time_end"):
                try:
                    span = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: time_start and time_end must be seconds, got "
                                     f"{row['time_start']!r} and {row['time_end']!r}") from error
                labels.setdefault(f"{row['youtube_id']}_{span}", row["label"])
                labels.setdefault(row["youtube_id"], row["label"])     # tools that name files by the id alone
    return labels


def _labelled(rows: list[Row], labels: dict[str, str]) -> list[Row]:
    """Rows with the csv files' labels where there is no class folder; what these do not name is left out then."""
    if not labels:
        return rows
    named = [(clip, label or labels.get(PurePosixPath(clip).stem, "")) for clip, label in rows]
    if unknown := [clip for clip, label in named if not label]:
        log.warning("left out %d videos that the csv files do not name, first %s", len(unknown), unknown[0])
    return [row for row in named if row[1]]
