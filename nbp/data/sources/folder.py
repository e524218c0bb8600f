"""A folder of your own videos: `<root>/<class>/**/*.mp4`, or files without classes; writes its annotation lists.

The class of a file is the first folder on its way; files directly in the root have none, and then no file may have
one. Folders train, val and test at the top are the split. Otherwise the hash of a file's name decides which are for
validation, so that added files leave the others' side; classes of fewer than SMALL files get exactly their share.
"""

import hashlib
import logging
from pathlib import Path

from nbp.data.annotations import Row, write_lists
from nbp.data.video_file import VIDEO_SUFFIXES
from nbp.data.walk import find_files, split_folders

SMALL = 30

log = logging.getLogger(__name__)


def prepare(root: str | Path, val_share: float = 0.1, exclude: frozenset[str] = frozenset(),
            out: str | Path | None = None) -> int:
    """Write train.txt, val.txt, classes.txt and, if there is a test folder, test.txt.

    Args:
        root: folder of videos.
        val_share: about this share of each class is kept for validation, in (0, 1); at least one file of each class
            with two or more, and one stays for training. Folders train and val make it meaningless.
        exclude: paths relative to `root` that no list gets.
        out: folder of the lists; None: `root`.

    Returns:
        Number of classes; 0 for files without.

    Raises:
        ValueError: a share out of range, fewer than two videos, or files with and without a class.
    """
    root = Path(root)
    if not 0 < val_share < 1:
        raise ValueError(f"--val-share must lie between 0 and 1, got {val_share}")
    splits = split_folders(root)
    loose = [path.name for path in sorted(root.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES
             and path.is_file() and not path.name.startswith(".")]
    if splits and loose:
        log.warning("%s: left out %d videos that are in none of its folders %s, first %s", root, len(loose),
                    ", ".join(sorted(path.name for path in splits.values())), loose[0])
    rows = {split: list_videos(root, folder, exclude) for split, folder in splits.items()} or _split(
        list_videos(root, root, exclude), val_share)
    if "val" not in rows:
        rows["val"] = rows.pop("test")
    everything = [row for part in rows.values() for row in part]
    plain, labels = [clip for clip, label in everything if not label], {label for _, label in everything if label}
    if plain and labels:
        raise ValueError(f"{root}: {len(plain)} videos have no class folder, first {plain[0]}, and others have; put "
                         "all into class folders or none")
    if not rows["train"] or not rows["val"]:
        raise ValueError(f"{root} holds {len(everything)} videos ({', '.join(VIDEO_SUFFIXES)}); training and "
                         "validation need one each")
    write_lists(out or root, rows["train"], rows["val"], rows.get("test", ()))
    return len(labels)


def list_videos(root: Path, folder: Path, exclude: frozenset[str]) -> list[Row]:
    """(path relative to `root`, first folder on the way from `folder`) of all videos there; says what is left out."""
    found = find_files(folder, VIDEO_SUFFIXES)
    if note := found.note():
        log.warning("%s: %s", folder, note)
    rows = []
    for path in found.files:
        way = path.relative_to(folder).parts
        rows.append((path.relative_to(root).as_posix(), way[0] if len(way) > 1 else ""))
    return [row for row in rows if row[0] not in exclude]


def _split(rows: list[Row], val_share: float) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    for label in sorted({label for _, label in rows}):
        clips = sorted((clip for clip, own in rows if own == label), key=_place)
        held = round(val_share * len(clips)) if len(clips) < SMALL else sum(_place(clip) < val_share for clip in clips)
        held = min(max(held, 1), len(clips) - 1)
        parts["val"] += sorted((clip, label) for clip in clips[:held])
        parts["train"] += sorted((clip, label) for clip in clips[held:])
    return parts


def _place(clip: str) -> float:
    """A path's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(clip.encode(errors="surrogateescape")).digest()[:8], "big") / 2 ** 64
