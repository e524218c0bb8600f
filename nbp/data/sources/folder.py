"""A folder of your own videos: `<root>/<class>/**/*.mp4`, or files without classes; writes its annotation lists.

The class of a file is the first folder on its way; files directly in the root have none, and then no file may have
one. Which files are for validation follows from the hash of their names, so that added files leave the others' side.
"""

import hashlib
import logging
from pathlib import Path

from nbp.data.annotations import Row, write_lists
from nbp.data.sources.k600 import SUFFIXES

log = logging.getLogger(__name__)


def prepare(root: str | Path, val_share: float = 0.1, exclude: frozenset[str] = frozenset()) -> int:
    """Write train.txt, val.txt and classes.txt into `root`.

    Args:
        root: folder of videos.
        val_share: about this share of each class is kept for validation, in (0, 1); at least one file of each class
            with two or more, and one stays for training.
        exclude: paths relative to `root` that no list gets.

    Returns:
        Number of classes; 0 for files without.

    Raises:
        ValueError: a share out of range, fewer than two videos, or files with and without a class.
    """
    root = Path(root)
    if not 0 < val_share < 1:
        raise ValueError(f"--val-share must lie between 0 and 1, got {val_share}")
    classes = _walk(root, exclude)
    count = sum(map(len, classes.values()))
    if count < 2:
        raise ValueError(f"{root} holds {count} videos ({', '.join(SUFFIXES)}); training and validation need one each")
    if "" in classes and len(classes) > 1:
        raise ValueError(f"{root}: {len(classes[''])} videos have no class folder, first {classes[''][0]}, and others "
                         "have; put all into class folders or none")
    train: list[Row] = []
    val: list[Row] = []
    for label, clips in sorted(classes.items()):
        clips = sorted(clips, key=_place)
        held = sum(_place(clip) < val_share for clip in clips)
        held = min(max(held, 1), len(clips) - 1)
        val += sorted((clip, label) for clip in clips[:held])
        train += sorted((clip, label) for clip in clips[held:])
    write_lists(root, train, val)
    return len(classes.keys() - {""})


def _place(clip: str) -> float:
    """A path's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(clip.encode()).digest()[:8], "big") / 2 ** 64


def _walk(root: Path, exclude: frozenset[str]) -> dict[str, list[str]]:
    """{class: relative paths}; empty files, the trace of a failed download, are left out and counted."""
    classes: dict[str, list[str]] = {}
    empty = []
    for path in sorted(root.rglob("*")):
        clip = path.relative_to(root)
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or clip.as_posix() in exclude:
            continue
        if path.stat().st_size:
            classes.setdefault(clip.parts[0] if len(clip.parts) > 1 else "", []).append(clip.as_posix())
        else:
            empty.append(clip)
    if empty:
        log.warning("%s: left out %d empty files, first %s", root, len(empty), empty[0])
    return classes
