"""The files of a folder: what counts as data, for preparing, scoring and training alike.

Links are followed; one that leads back to a folder above it is an error. Hidden files, what systems leave behind, empty
files (the trace of a failed download), broken links and other suffixes are left out, and counted.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nbp.data.pictures import PICTURE_SUFFIXES
from nbp.data.video_file import VIDEO_SUFFIXES

# Beside names that begin with ".": of macOS, Windows, Synology and Linux.
SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir",
                "lost+found"}
# What the project itself writes into data sets.
OWN_NAMES = {"train.txt", "val.txt", "test.txt", "classes.txt", "data.yaml", "bad_files.txt", "verified.jsonl",
             "procgen.json"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}


class Found(NamedTuple):
    """Files below a folder."""

    files: list[Path]         # sorted
    left_out: Counter[str]    # what: how many

    def note(self) -> str:
        """What was left out, as "left out 6 files: 3 .txt, 3 hidden or system"; "" for nothing."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
        count = self.left_out.total()
        return f"left out {count} file{'s' * (count != 1)}: {kinds}" if kinds else ""


def find_files(root: str | Path, suffixes: tuple[str, ...]) -> Found:
    """All files below a folder with one of these suffixes (lower case), by the rules of this module.

    Raises:
        ValueError: a link leads in a circle.
        OSError: a folder cannot be read.
    """
    found = Found([], Counter())
    for path in _walk(Path(root), {}, found.left_out) if Path(root).is_dir() else ():
        if path.suffix.lower() not in suffixes:
            if path.name not in OWN_NAMES:
                found.left_out[path.suffix.lower() or "without a suffix"] += 1
        elif path.stat().st_size == 0:
            found.left_out["empty"] += 1
        else:
            found.files.append(path)
    found.files.sort(key=lambda path: path.parts)
    return found


def _walk(folder: Path, above: dict[tuple[int, int], Path], left_out: Counter[str]) -> Iterator[Path]:
    """Files below a folder; `above` holds the folders on the way to it, by device and inode."""
    state = os.stat(folder)
    place = state.st_dev, state.st_ino
    if place in above:
        raise ValueError(f"{folder} is a link back to {above[place]}, so the folder has no end: remove the link")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            folder_inside = os.path.isdir(path)   # False for a link to itself
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                left_out["hidden or system"] += sum(len(names) for *_, names in os.walk(path)) if folder_inside else 1
            elif folder_inside:
                yield from _walk(path, above | {place: folder}, left_out)
            elif os.path.isfile(path):
                yield path
            elif entry.is_symlink():
                left_out["broken link"] += 1


def split_folders(root: str | Path) -> dict[str, Path]:
    """{"train", "val", "test": folder} of a folder that is divided so; empty for others.

    It is if there is a folder for training, one for validation or testing, and no other that holds what training does,
    videos or else pictures: beside "car" a "train" is a class, beside previews or a cache of tokens it is not.

    Raises:
        ValueError: two folders for one split.
    """
    root = Path(root)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")
               and path.name.lower() not in SYSTEM_NAMES] if root.is_dir() else []
    found: dict[str, list[Path]] = {}
    for path in folders:
        found.setdefault(SPLITS.get(path.name.lower(), ""), []).append(path)
    others = found.pop("", [])
    if "train" not in found or len(found) == 1:
        return {}
    kind = VIDEO_SUFFIXES if any(_holds(folder, VIDEO_SUFFIXES) for folder in found["train"]) else PICTURE_SUFFIXES
    if any(_holds(folder, kind) for folder in others):
        return {}
    for split, several in found.items():
        if len(several) > 1:
            raise ValueError(f"{root} has {len(several)} folders for {split}: {', '.join(p.name for p in several)}; "
                             "keep one")
    return {split: several[0] for split, several in found.items()}


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return any(path.suffix.lower() in suffixes for path in _walk(folder, {}, Counter()))
