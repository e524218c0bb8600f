"""UCF-101: finds its videos wherever they lie below the root and writes its annotation lists.

A video is known by its name, v_ApplyEyeMakeup_g01_c01, whatever its suffix, its folders and their capitals.
Uses the official split files (`ucfTrainTestlist/trainlist01.txt`, `testlist01.txt`, in or beside the root) where
they are present. Without them folders train, val and test are the split, and without those groups 1 to 7 of each class
are the validation set, the rule of official split 1.
Source: https://www.crcv.ucf.edu/data/UCF101.php
"""

import logging
import re
from pathlib import Path

from nbp.data.annotations import Row, read_lines, write_lists
from nbp.data.classes import UCF101_CLASSES
from nbp.data.sources.folder import list_videos
from nbp.data.walk import split_folders

_NAME = re.compile(r"v_(.+)_g(\d\d)_c\d\d$", re.IGNORECASE)
_VALIDATION_GROUPS = range(1, 8)

log = logging.getLogger(__name__)


def prepare(root: str | Path, split: int = 1, exclude: frozenset[str] = frozenset(),
            out: str | Path | None = None) -> None:
    """Write train.txt, val.txt, classes.txt and, of a test folder beside a val one, test.txt.

    Args:
        root: folder of the videos.
        split: official split, 1 to 3; splits 2 and 3 need the official files.
        exclude: paths relative to `root` that no list gets; they need not be there.
        out: folder of the lists; None: `root`.

    Raises:
        ValueError: no videos, files of the split that are missing, or a split that needs the official files.
    """
    root = Path(root)
    if split not in (1, 2, 3):
        raise ValueError(f"UCF-101 has splits 1, 2 and 3, got {split}")
    videos = [clip for clip, _ in list_videos(root, root, frozenset())] if root.is_dir() else []
    lists = [folder for folder in (root / "ucfTrainTestlist", root.parent / "ucfTrainTestlist") if folder.is_dir()]
    if lists:
        parts = {name: _official(root, lists[0] / f"{file}list{split:02d}.txt", videos, exclude)
                 for name, file in (("train", "train"), ("val", "test"))}
    elif split != 1:
        raise ValueError(f"split {split} needs the official files in {root / 'ucfTrainTestlist'}")
    else:
        parts = _by_folder_or_group(root, [clip for clip in videos if clip not in exclude])
    write_lists(out or root, parts["train"], parts["val"], parts.get("test", ()))


def _official(root: Path, path: Path, videos: list[str], exclude: frozenset[str]) -> list[Row]:
    if not path.is_file():
        raise ValueError(f"split file {path} does not exist")
    listed = [line.split()[0] for line in read_lines(path) if line.strip()]
    places: dict[str, list[str]] = {}
    for clip in videos:
        places.setdefault(Path(clip).stem.lower(), []).append(clip)
    rows, missing, gone = [], [], {_stem(clip) for clip in exclude if not (root / clip).is_file()}
    for clip in listed:
        found = places.get(_stem(clip), [])
        best = clip if clip in found else next(iter(found), None)   # copies of a video: the listed one, or the first
        if best is not None and best not in exclude:
            rows.append((best, clip.split("/")[0]))
        elif best is None and clip not in exclude and _stem(clip) not in gone:
            missing.append(clip)
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(listed)} videos are not in {root}, first {missing[0]}; "
                         f"{len(videos)} others are" + (f", first {videos[0]}" if videos else "") +
                         ". To go on without them list them in a file, one path a line, and give --exclude FILE")
    return sorted(rows)


def _stem(clip: str) -> str:
    return Path(clip).stem.lower()


def _by_folder_or_group(root: Path, videos: list[str]) -> dict[str, list[Row]]:
    spellings = {name.lower(): name for name in UCF101_CLASSES}
    splits = {folder.name: split for split, folder in split_folders(root).items()}
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    for clip in videos:
        match = _NAME.match(Path(clip).stem)
        if not match:
            raise ValueError(f"{root / clip}: expected a name like v_ApplyEyeMakeup_g01_c01.avi")
        split = splits.get(clip.split("/")[0]) or ("val" if int(match[2]) in _VALIDATION_GROUPS else "train")
        # The class of files without a class folder is in their names.
        folder = Path(clip).parent.name
        label = spellings.get(folder.lower()) or spellings.get(match[1].lower(), folder or match[1])
        parts.setdefault(split, []).append((clip, label))
    if not parts["val"] and parts.get("test"):
        parts["val"] = parts.pop("test")
    if splits:
        log.warning("%s: the folders %s are the split; that of UCF-101 follows from its own lists", root,
                    ", ".join(sorted(splits)))
    if not parts["train"] or not parts["val"]:
        raise ValueError(f"{root} must hold <Class>/v_<Class>_gGG_cCC.avi with groups 1 to 7 and others, found "
                         f"{len(parts['val'])} and {len(parts['train'])} videos")
    return parts
