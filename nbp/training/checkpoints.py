"""The checkpoints of a run folder: which there are, which are complete, which are kept. Nothing here unpickles.

A checkpoint is one file, or with DeepSpeed a folder, `checkpoints/step0000200.ckpt`. It gets that name by a rename
when it is complete. `last.ckpt` and `best.ckpt` are links. Folders hold MANIFEST: their files with sizes, and the run.
"""

import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbp.system.files import read_json, write_json

MANIFEST = "complete.json"
LAST, BEST = "last.ckpt", "best.ckpt"


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps goes."""
    return Path(folder) / f"step{step:07d}.ckpt"


def step_of(path: str | Path) -> int | None:
    """Optimizer steps of a checkpoint by its name; None for any other name."""
    found = re.fullmatch(r"step=?(\d+)\.ckpt", Path(path).name)
    return int(found.group(1)) if found else None


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints, newest first; what lies behind `last.ckpt` belongs to an abandoned continuation and is left out."""
    last = Path(folder) / LAST
    limit = step_of(os.readlink(last)) if last.is_symlink() else None
    found = [(step_of(path), path) for path in Path(folder).glob("step*.ckpt")]
    return [path for step, path in sorted(found, reverse=True, key=lambda pair: pair[0] or 0)
            if step is not None and (limit is None or step <= limit)]


def find_damage(path: str | Path, rank: int = 0, world: int = 1) -> str | None:
    """Why a checkpoint cannot be used, in words; None for a complete one. Reads all of it and checks its CRCs; of a
    folder's files only share `rank` of `world` (a single file is share 0)."""
    path = Path(path)
    if not path.exists():
        return "it does not exist"
    if path.is_file():
        return _file_damage(path) if rank == 0 else None
    try:
        files = read_json(path / MANIFEST)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its {MANIFEST} is missing or damaged ({error})"
    for name in sorted(files)[rank::world]:
        file = path / name
        if not file.is_file() or file.stat().st_size != files[name]:
            return f"{name} is missing or not {files[name]} bytes long"
        if file.suffix == ".pt" and (damage := _file_damage(file)):
            return f"{name}: {damage}"
    return None


def _file_damage(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"it is truncated or not a checkpoint ({error})"
    return None if bad is None else f"the checksum of its part {bad} is wrong"


def newest_complete(folder: str | Path, candidates: Sequence[Path] | None = None,
                    damage_of: Callable[[Path], str | None] = find_damage, quiet: bool = False) -> Path:
    """The newest complete one of `candidates` (newest first; None: all of `folder`); damaged ones are named on stderr
    unless `quiet`. `damage_of` stands for `find_damage` among several processes. ValueError: every one is damaged."""
    candidates = list_checkpoints(folder) if candidates is None else candidates
    for path in candidates:
        damage = damage_of(path)
        if damage is None:
            return path
        if not quiet:
            print(f"skipping checkpoint {path}: {damage}", file=sys.stderr, flush=True)
    raise ValueError(f"{folder}: none of {len(candidates)} checkpoints is complete; trainer.resume=never starts anew")


def publish(temporary: str | Path, final: str | Path, facts: dict[str, Any]) -> None:
    """Give a finished checkpoint folder its final name, in place of an older one; `facts` go into its manifest."""
    temporary, final = Path(temporary), Path(final)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
    write_json(temporary / MANIFEST, facts | {"files": sizes})
    old = hidden(final, "replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():      # gone only when the new one is there
        os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def hidden(path: str | Path, word: str = "partial") -> Path:
    """A name beside `path` that no search for checkpoints finds."""
    return Path(path).with_name(f".{Path(path).stem}.{word}")


def remove(path: str | Path) -> None:
    """Remove a checkpoint; it loses its name first, so that no half of it is ever found."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        gone = hidden(path, "removed")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def link(folder: str | Path, name: str, target: str | Path) -> None:
    """Point `name` in `folder` at the checkpoint `target` there, atomically."""
    temporary = hidden(Path(folder) / name, "link")
    temporary.unlink(missing_ok=True)
    os.symlink(Path(target).name, temporary)
    os.replace(temporary, Path(folder) / name)


def prune(folder: str | Path, keep_last: int) -> None:
    """Remove all checkpoints but the newest `keep_last` and the best."""
    best = Path(folder) / BEST
    kept = os.readlink(best) if best.is_symlink() else None
    for path in list_checkpoints(folder)[keep_last:]:
        if path.name != kept:
            remove(path)


def clean(folder: str | Path) -> None:
    """Remove what a killed process left half-written."""
    for path in Path(folder).glob(".*"):
        remove(path)


def abandon_newer(folder: str | Path, start: str | Path | None) -> None:
    """Move what is newer than `start`, or all if that lies elsewhere, into `folder`/abandoned: another branch."""
    folder, start = Path(folder), None if start is None else Path(start).resolve()
    limit = step_of(start) if start is not None and start.parent == folder.resolve() else None
    for path in folder.glob("step*.ckpt"):
        step = step_of(path)
        if step is not None and (limit is None or step > limit):
            (folder / "abandoned").mkdir(exist_ok=True)
            remove(folder / "abandoned" / path.name)
            os.rename(path, folder / "abandoned" / path.name)
    if start is not None and limit is not None:
        link(folder, LAST, start)
    for name in (LAST, BEST):
        if not (folder / name).exists():
            (folder / name).unlink(missing_ok=True)


def link_best(folder: str | Path, step: int | None) -> bool:
    """Whether the best checkpoint so far, that of `step` or of unknown step, is in the folder; `best.ckpt` points at it
    then."""
    if step is None:
        return (Path(folder) / BEST).exists()
    path = checkpoint_path(folder, step)
    if path.exists():
        link(folder, BEST, path)
    else:
        (Path(folder) / BEST).unlink(missing_ok=True)
    return path.exists()


def set_aside(folder: str | Path) -> Path | None:
    """Rename a checkpoints folder, for a run that starts over in its place; returns the new name, or None."""
    folder = Path(folder)
    if not list_checkpoints(folder):
        return None
    number = 1
    while (new := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    os.rename(folder, new)
    return new
