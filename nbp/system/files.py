"""Files that are never half-written, their hashes, and progress bars for long loops."""

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    The suffix is kept, because codec libraries choose the container by it.

    Raises:
        OSError: the folder cannot be written or the disk is full; an older `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def check_writable(folder, name):
    """Make a folder and try to write in it, before work whose result goes there.

    Args:
        folder: path.
        name: of the setting it comes from, put before it in the message: "--out ".

    Raises:
        ValueError: it can't be made or written.
    """
    probe = Path(folder) / f".write-test-{uuid.uuid4()}"  # process numbers repeat on the nodes of a shared disk
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{name}{folder} cannot be written: {error}") from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON, atomically; NaN and infinite numbers, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path):
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def sha256(path):
    """Hex sha256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def progress(iterable, total, description, unit="it", initial=0):
    """Yield from `iterable` while showing count, rate and time left.

    A live bar on a terminal; elsewhere (log files) one line every ten seconds, so logs stay readable.

    Args:
        iterable: what to iterate over.
        total: number of items of the whole task, `initial` included.
        description: name of the task.
        unit: what one item is, as in "clips".
        initial: items done by an earlier, interrupted run.
    """
    if sys.stderr.isatty():
        yield from _bar(iterable, total, description, unit, initial)
    else:
        yield from _lines(iterable, total, description, unit, initial)


def _bar(iterable, total, description, unit, initial):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=initial, rate="")
        for count, item in enumerate(iterable, 1):
            yield item
            bar.update(task, advance=1, rate=f"{count / max(time.monotonic() - start, 1e-9):.2f} {unit}/s")


def _lines(iterable, total, description, unit, initial, every_s=10.0):
    start = last = time.monotonic()
    count = 0

    def line(now):
        rate = count / max(now - start, 1e-9)
        left = (total - initial - count) / max(rate, 1e-9)
        print(f"{description}: {initial + count}/{total} {unit}, {rate:.2f} {unit}/s, {left:.0f} s left",
              file=sys.stderr, flush=True)

    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= every_s:
            line(now)
            last = now
    line(time.monotonic())
