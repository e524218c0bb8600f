"""UCF-101: checks `<root>/<Class>/v_*_gGG_cCC.avi` and writes its annotation lists.

Uses the official split files (`ucfTrainTestlist/trainlist01.txt`, `testlist01.txt`, in or beside the root) where
they are present. Without them groups 1 to 7 of each class are the validation set, the rule of official split 1.
Source: https://www.crcv.ucf.edu/data/UCF101.php
"""

import re
from pathlib import Path

from nbp.data.annotations import Row, write_lists

_GROUP = re.compile(r"_g(\d\d)_c\d\d\.avi$")
_VALIDATION_GROUPS = range(1, 8)


def prepare(root: str | Path, split: int = 1, exclude: frozenset[str] = frozenset()) -> None:
    """Write train.txt, val.txt and classes.txt into `root`.

    Args:
        root: folder with one folder per class.
        split: official split, 1 to 3; splits 2 and 3 need the official files.
        exclude: paths relative to `root` that no list gets; they need not be there.

    Raises:
        ValueError: no videos, files of the split that are missing, or a split that needs the official files.
    """
    root = Path(root)
    if split not in (1, 2, 3):
        raise ValueError(f"UCF-101 has splits 1, 2 and 3, got {split}")
    lists = [folder for folder in (root / "ucfTrainTestlist", root.parent / "ucfTrainTestlist") if folder.is_dir()]
    if lists:
        train = _official(root, lists[0] / f"trainlist{split:02d}.txt", exclude)
        val = _official(root, lists[0] / f"testlist{split:02d}.txt", exclude)
    elif split == 1:
        train, val = _by_group(root, exclude)
    else:
        raise ValueError(f"split {split} needs the official files in {root / 'ucfTrainTestlist'}")
    write_lists(root, train, val)


def _official(root: Path, path: Path, exclude: frozenset[str]) -> list[Row]:
    if not path.is_file():
        raise ValueError(f"split file {path} does not exist")
    clips = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    clips = [clip for clip in clips if clip not in exclude]
    missing = [clip for clip in clips if not (root / clip).is_file()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(clips)} videos are not in {root}, first {missing[0]}")
    return sorted((clip, clip.split("/")[0]) for clip in clips)


def _by_group(root: Path, exclude: frozenset[str]) -> tuple[list[Row], list[Row]]:
    train: list[Row] = []
    val: list[Row] = []
    for path in sorted(root.glob("*/v_*.avi")):
        match = _GROUP.search(path.name)
        if not match:
            raise ValueError(f"{path}: expected a name like v_ApplyEyeMakeup_g01_c01.avi")
        row = (path.relative_to(root).as_posix(), path.parent.name)
        if row[0] not in exclude:
            (val if int(match[1]) in _VALIDATION_GROUPS else train).append(row)
    if not train or not val:
        raise ValueError(f"{root} must hold <Class>/v_<Class>_gGG_cCC.avi with groups 1 to 7 and others, found "
                         f"{len(val)} and {len(train)} videos")
    return train, val
