"""Files that are never half-written, JSON, and hashes."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from nbp.system.command import UserError

AnyPath: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_path(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix, by which codec libraries choose the container; on success
    it replaces `path`, on failure it is removed. OSError: the folder cannot be written or the disk is full; an older
    `path` is left as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        full = _is_full(path.parent)  # asked before the rest of the file gives its space back
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            error.filename = str(path)
        elif full and isinstance(error, (RuntimeError, ValueError)):
            # torch and others report a full disk by exceptions of their own, which do not say so.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 1 << 20
    except OSError:
        return False


def check_writable(folder: AnyPath, name: str) -> None:
    """Make a folder and try to write in it, before work whose result goes there. ValueError: it can't be; the message
    begins with `name`, the setting it comes from ("--out ")."""
    probe = Path(folder) / f".write-test-{uuid.uuid4()}"  # process numbers repeat on the nodes of a shared disk
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{name}{folder} cannot be written: {error}") from error


@contextlib.contextmanager
def held(folder: AnyPath, patience_s: float = 1.0) -> Iterator[int]:
    """Hold FOLDER/.lock, whose descriptor is given; commands that inherit it keep it held while one outlives a killed
    parent. UserError: another process holds it, and still does after `patience_s`."""
    import fcntl

    deadline = time.monotonic() + patience_s
    with open(Path(folder) / ".lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"another process is working in {folder}; wait for it or stop it") from error
                time.sleep(0.1)
            except OSError as error:        # some network file systems have no locks
                print(f"{folder} cannot be locked ({error}): keep other processes out of it", file=sys.stderr)
                break
        yield file.fileno()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: AnyPath, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinite numbers, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: AnyPath) -> Any:  # noqa: ANN401 - a file may hold anything
    """Read a JSON file. ValueError: it is not JSON; the message names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def sha256(path: AnyPath) -> str:
    """Hex sha256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
