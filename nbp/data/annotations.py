"""Annotation lists: text files with one clip per line, `relative/path<TAB>label`.

Paths are relative to the data set's root, exactly as the files are called; the label is a class name, empty in sets
without classes. A class's id is its place in classes.txt: the sorted names of the training list. The lists of the
original release are read as they are: their class numbers stand for the folders of the files. So are lines of a path,
a space and a number.
"""

import codecs
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from nbp.system.files import write_text

MAX_SIZES = 1000    # files whose sizes tell a set from another: asking for more may take minutes on a network

Row = tuple[str, str]  # relative path, label


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file: UTF-8, or UTF-16 with its byte order mark; ended as on Unix, Windows or old Macs.

    Other separators that Unicode knows (U+2028, U+0085, ...) are characters of names.

    Raises:
        ValueError: another encoding; names the file.
    """
    content = Path(path).read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} holds null characters, as UTF-16 without its mark; save it as UTF-8")
    return text.replace("\r\n", "\n").split("\n" if "\n" in text else "\r")


def read_annotations(path: str | Path, root: str | Path | None = None,
                     train_list: str | Path | None = None) -> list[Row]:
    """Read an annotation list.

    Args:
        path: text file.
        root: the data set's; None: the list's folder. Where a line can be read in two ways, the files that are there
            decide, as they do for `folder_of`.
        train_list: the data set's, which decides what class numbers mean; None: `path`.

    Returns:
        (relative path, label) of each clip, in file order.

    Raises:
        ValueError: the list is missing, empty, or a line has no path or more than one tab; names file and line.
    """
    rows = _read_rows(Path(path), root)
    if train_list is None or Path(train_list) == Path(path):
        return _named_classes(rows, rows)
    train = _read_rows(Path(train_list), root)
    numbered = all(label.isdecimal() for _, label in train)
    return _named_classes(rows, train if numbered else rows)


def _read_rows(path: Path, root: str | Path | None) -> list[Row]:
    if not path.is_file():
        raise ValueError(f"annotation list {path} does not exist; `python -m nbp.prepare` writes it")
    rows, folders = [], _folders(path.parent if root is None else root)
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        clip, _, label = line.partition("\t")
        if "\t" in label or not clip.strip():
            raise ValueError(f"{path}, line {number}: expected `path<TAB>label`, got {line!r}")
        # Spaces, quotes and backslashes belong to a name, but for those around what was typed by hand or on Windows.
        bare, (name, _, number_of_class) = clip.strip(), clip.strip().rpartition(" ")
        others = [(bare, label), (bare.strip('"'), label), (bare.replace("\\", "/"), label)]
        if not label and number_of_class.isdecimal():       # `path number`, as MMAction2 and VideoMAE write lists
            others.append((name, number_of_class))
        for other, its_label in others:
            if other != clip and _is_there(folders, other) and not _is_there(folders, clip):
                clip, label = other, its_label
        rows.append((clip, label if label in clip.split("/") else label.strip()))
    if not rows:
        raise ValueError(f"annotation list {path} is empty")
    return rows


def _named_classes(rows: list[Row], train: list[Row]) -> list[Row]:
    """Rows with folder names as labels where numbers stand for them in the training list; one of zeros alone has no
    classes. Numbers that are folders on the way to their clips are names themselves."""
    numbers = {label for _, label in train}
    if not all(label.isdecimal() for label in numbers) or all(label in Path(clip).parts[:-1] for clip, label in train):
        return rows
    if numbers == {"0"}:
        return [(clip, "") for clip, _ in rows]
    folders = {(label, Path(clip).parent.name) for clip, label in train}
    name_of = dict(folders)
    if len(name_of) == len(folders) == len(set(name_of.values())) and "" not in name_of.values():
        return [(clip, name_of.get(label, label)) for clip, label in rows]
    return rows


def folder_of(root: str | Path, rows: Sequence[Row]) -> Path:
    """The folder that a list's paths are relative to: its root, or one above it, as in the original release."""
    for clip, _ in rows[:20]:
        for folder in _folders(root):
            if (folder / clip).is_file():
                return folder
    return Path(root)


def _folders(root: str | Path) -> list[Path]:
    return [Path(root), *Path(root).absolute().parents[:2]]


def _is_there(folders: list[Path], clip: str) -> bool:
    return any((folder / clip).exists() for folder in folders)


def write_annotations(path: str | Path, rows: Sequence[Row]) -> None:
    """Write (relative path, label) pairs as an annotation list, atomically.

    Raises:
        ValueError: no rows, or a name that a list cannot carry: with a tab or line break inside, or not UTF-8.
    """
    if not rows:
        raise ValueError(f"no clips for {path}")
    for row in rows:
        if any(character in field for field in row for character in "\t\r\n"):
            raise ValueError(f"{path}: {row!r} holds a tab or a line break, which annotation lists cannot carry; "
                             "rename the file")
        try:
            "".join(row).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: the name {os.fsencode(row[0])!r} is not UTF-8, which annotation lists cannot "
                             "carry; rename the file") from error
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


def classes_of(rows: Iterable[Row]) -> list[str]:
    """Class names in id order of the rows of a training list: alphabetically, or as numbers where all are."""
    names = {label for _, label in rows if label}
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def files_sha256(root: str | Path, rows: Sequence[Row]) -> str:
    """Hex sha256 of the names and sizes of the files of a list, of at most `MAX_SIZES` evenly spaced ones: tells videos
    from others of the same names; one that is missing has no size."""
    found = []
    for clip, _ in rows[::-(-len(rows) // MAX_SIZES)]:
        path = Path(root) / clip
        found.append([clip, path.stat().st_size if path.is_file() else None])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def count_per_class(rows: Iterable[Row]) -> dict[str, int]:
    """Number of clips of each label, as {label: count} sorted by label."""
    return dict(sorted(Counter(label for _, label in rows).items()))


def write_lists(out: str | Path, train: Sequence[Row], val: Sequence[Row], test: Sequence[Row] = ()) -> None:
    """Check the lists and write `train.txt`, `val.txt`, `classes.txt` and, of test rows, `test.txt` into `out`.

    The order of writing makes train.txt the sign that all are there.

    Raises:
        ValueError: the lists share a clip, or the validation list has a class that the training list lacks.
    """
    out = Path(out)
    check_overlap(train, val)
    names = classes_of(train)
    unknown = sorted({label for _, label in val if label} - set(names))
    if unknown:
        raise ValueError(f"{out}: validation classes without training clips: {', '.join(unknown)}")
    if test:
        write_annotations(out / "test.txt", test)
    else:
        (out / "test.txt").unlink(missing_ok=True)      # of before
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in names))
    write_annotations(out / "val.txt", val)
    write_annotations(out / "train.txt", train)
