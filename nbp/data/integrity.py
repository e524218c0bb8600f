"""Decode every file of a data set once, in parallel, and list the bad ones.

`<root>/verified.jsonl` keeps what was found, one line per file with its size and time of change, so that a stopped
scan goes on and a later one reads only files that are new or changed. `<root>/bad_files.txt` has the result.
"""

import contextlib
import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypedDict, TypeVar

from nbp.data.annotations import folder_of, read_annotations, read_lines
from nbp.data.video_io import VideoError, check_video
from nbp.system.files import write_text
from nbp.system.progress import progress

RECORD, BAD_FILES = "verified.jsonl", "bad_files.txt"
LISTS = ("train.txt", "val.txt", "test.txt")

Job = TypeVar("Job")
Result = TypeVar("Result")


class Entry(TypedDict):
    """A line of verified.jsonl."""

    path: str
    stamp: list[int]   # size and time of change
    error: str         # "" for a good file


def verify(root: str | Path, num_workers: int = 8, out: str | Path | None = None) -> tuple[int, dict[str, str]]:
    """Decode all files of a data set's annotation lists and write `bad_files.txt` (`path<TAB>reason`).

    Args:
        root: prepared data set.
        num_workers: decoding processes.
        out: folder of the lists and of what is written; None: `root`.

    Returns:
        (number of files, dict of bad path -> reason).

    Raises:
        ValueError: no annotation list there, or num_workers below 1.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    root, out = Path(root), Path(out or root)
    lists = [out / name for name in LISTS if (out / name).is_file()]
    if not lists:
        raise ValueError(f"{out} holds none of {', '.join(LISTS)}: prepare the data set first")
    rows = [row for name in lists for row in read_annotations(name, root)]
    files, root = sorted({path for path, _ in rows}), folder_of(root, rows)
    known = _read_record(out / RECORD)
    stamps = {path: _stamp(root / path) for path in files}
    todo = [path for path in files if path not in known or known[path]["stamp"] != stamps[path]]
    found = {path: entry["error"] for path, entry in known.items()}
    with open(out / RECORD, "a", encoding="utf-8") as record:
        for path, error in _scan(root, todo, len(files), min(num_workers, max(1, len(todo)))):
            found[path] = error
            # The line break comes first, so that an entry behind one that a stopped scan left unfinished is whole.
            record.write("\n" + json.dumps({"path": path, "stamp": stamps[path], "error": error}))
            record.flush()
    bad = {path: found[path] for path in files if found[path]}
    write_text(out / BAD_FILES, "".join(f"{path}\t{error}\n" for path, error in bad.items()))
    return len(files), bad


def read_bad_files(path: str | Path) -> frozenset[str]:
    """Relative paths of a list as `verify` writes it, `path<TAB>reason`; a reason may be missing.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; `python -m nbp.prepare ... --verify` writes such a list")
    return frozenset(line.split("\t")[0] for line in read_lines(path) if line.strip())


def _scan(root: Path, todo: list[str], total: int, num_workers: int) -> Iterator[tuple[str, str]]:
    """Yield (path, reason or "") of each file, with a progress bar."""
    if todo:
        results = check_all(_check, [(str(root), path) for path in todo], num_workers)
        yield from progress((result or (path, "the decoder crashed") for (_, path), result in results), total, "verify",
                            "files", total - len(todo))


def check_all(check: Callable[[Job], Result], jobs: Iterable[Job],
              num_workers: int) -> Iterator[tuple[Job, Result | None]]:
    """Run `check` on each job in processes of their own; a job that kills its process gives None, not an end.

    Args:
        check: function of one job, importable by name.
        jobs: list of arguments.
        num_workers: processes.

    Yields:
        (job, result), in the order in which they are done.
    """
    waiting, broken = deque(jobs), True
    while broken:
        in_flight: dict[Future[Result], Job] = {}
        broken = False
        with _pool(num_workers) as pool:
            try:
                while waiting or in_flight:
                    while waiting and len(in_flight) < 2 * num_workers:
                        in_flight[pool.submit(check, waiting[0])] = waiting[0]
                        waiting.popleft()
                    done = next(as_completed(in_flight))
                    finished = done.result()
                    yield in_flight.pop(done), finished
            except BrokenProcessPool:
                broken = True
        for job in in_flight.values():       # one of these broke it: each gets a process of its own
            with _pool(1) as pool:
                result = None
                with contextlib.suppress(BrokenProcessPool):
                    result = pool.submit(check, job).result()
            yield job, result


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Processes, because the codec holds the interpreter; spawned, because codec threads do not survive a fork.
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"))


def _check(job: tuple[str, str]) -> tuple[str, str]:
    root, path = job
    try:
        check_video(Path(root) / path)
    except VideoError as error:
        return path, " ".join(str(error).split())
    return path, ""


def _stamp(path: Path) -> list[int]:
    """Size and time of change of a file, [0, 0] for none."""
    if not path.is_file():
        return [0, 0]
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _read_record(path: Path) -> dict[str, Entry]:
    """Last entry of each file; a line that a stopped scan left unfinished is no entry."""
    entries: dict[str, Entry] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            entries[entry["path"]] = entry
    return entries
