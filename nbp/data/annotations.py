"""Annotation lists: text files with one clip per line, `relative/path<TAB>label`.

Paths are relative to the data set's root; the label is a class name, empty in sets without classes.
A class's id is its place in classes.txt: the sorted names of the training list.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from nbp.system.files import write_text

Row = tuple[str, str]  # relative path, label


def read_annotations(path: str | Path) -> list[Row]:
    """Read an annotation list.

    Returns:
        list of (relative path, label), both str, in file order.

    Raises:
        ValueError: the list is missing, empty, or a line has no path or more than one tab; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"annotation list {path} does not exist; `python -m nbp.prepare` writes it")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) > 2 or not parts[0].strip():
            raise ValueError(f"{path}, line {number}: expected `path<TAB>label`, got {line!r}")
        rows.append((parts[0].strip(), parts[1].strip() if len(parts) == 2 else ""))
    if not rows:
        raise ValueError(f"annotation list {path} is empty")
    return rows


def write_annotations(path: str | Path, rows: Sequence[Row]) -> None:
    """Write (relative path, label) pairs as an annotation list, atomically.

    Raises:
        ValueError: no rows, or a tab or line break inside a path or label.
    """
    if not rows:
        raise ValueError(f"no clips for {path}")
    for row in rows:
        if any(character in field for field in row for character in "\t\r\n"):
            raise ValueError(f"{path}: {row!r} holds a tab or a line break, which annotation lists cannot carry")
    write_text(path, "".join(f"{clip}\t{label}\n" for clip, label in rows))


def check_overlap(train: Iterable[Row], val: Iterable[Row],
                  names: tuple[str, str] = ("training", "validation")) -> None:
    """Make sure that no clip is in both lists, called by `names` in the message.

    Raises:
        ValueError: names how many clips are shared and the first of them.
    """
    shared = sorted({clip for clip, _ in train} & {clip for clip, _ in val})
    if shared:
        raise ValueError(f"{len(shared)} clips are in both the {names[0]} and the {names[1]} list, first {shared[0]!r}")


def annotations_sha256(rows: Iterable[Row]) -> str:
    """Hex sha256 of (relative path, label) pairs in their order: tells a list from a changed one."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def count_per_class(rows: Iterable[Row]) -> dict[str, int]:
    """Number of clips of each label, as {label: count} sorted by label."""
    return dict(sorted(Counter(label for _, label in rows).items()))


def write_lists(root: str | Path, train: Sequence[Row], val: Sequence[Row]) -> None:
    """Check two lists and write `train.txt`, `val.txt` and `classes.txt` into `root`.

    The order of writing makes train.txt the sign that all three are there.

    Raises:
        ValueError: the lists share a clip, or the validation list has a class that the training list lacks.
    """
    root = Path(root)
    check_overlap(train, val)
    names = sorted({label for _, label in train if label})
    unknown = sorted({label for _, label in val if label} - set(names))
    if unknown:
        raise ValueError(f"{root}: validation classes without training clips: {', '.join(unknown)}")
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in names))
    write_annotations(root / "val.txt", val)
    write_annotations(root / "train.txt", train)
