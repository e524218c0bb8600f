"""A list of commands run one after the other, each logged, timed and skipped once it is done.

OUT/stages.json keeps command, digests of the configs that it names, seconds (over all attempts), processor seconds
(without killed attempts) and peak memory of every stage; OUT/logs has what each printed. An interrupted stage is run
again: every command goes on where it was by itself. So that none goes on from what another command, another config
or an earlier stage that has changed left behind, such a folder is renamed to FOLDER.old first.
"""

import contextlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nbp.config import config_digest
from nbp.system.command import UserError
from nbp.system.files import held, read_json, write_json

LAST_LINES = 20
LOCK_PATIENCE_S = 10.0   # a command that was killed with its parent takes a moment to go
CLEAR_LINE = b"\x1b[K"   # from the cursor to the end of a terminal's line
PROGRESS = re.compile(rb"(\d+)/(\d+)\b.* s left")   # what `nbp.system.progress` and the training print


class StageError(UserError):
    """A stage that failed; the text holds its name, its log and the last lines."""


@dataclass(frozen=True)
class Stage:
    """One command: `python -m module arguments`; `output` is the path that it leaves behind when it is done, `folder`
    where the command goes on from, if it does: set aside before it has to begin anew."""

    name: str
    module: str
    arguments: tuple[str, ...]
    output: Path
    folder: Path | None = None

    @property
    def command(self) -> str:
        """What a person types to run it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])

    def configs(self) -> dict[str, str]:
        """{YAML file that the command names: digest of what it says, its bases included}."""
        files = [argument for argument in self.arguments if argument.endswith((".yaml", ".yml"))]
        return {file: config_digest(file) for file in files if Path(file).is_file()}


class Record:
    """stages.json of run folder `out`; entries of other stages than `stages` are dropped."""

    def __init__(self, out: Path, stages: Sequence[Stage]) -> None:
        self.path = Path(out) / "stages.json"
        found = {row["name"]: row for row in read_json(self.path)["stages"]} if self.path.is_file() else {}
        self.rows, self.fresh, self.changes = {}, {}, {}
        for number, stage in enumerate(stages, 1):
            new = {"name": stage.name, "command": stage.command, "configs": stage.configs(),
                   "log": f"logs/{number:02d}-{stage.name}.log", "seconds": 0.0, "cpu_seconds": 0.0,
                   "peak_memory_bytes": 0, "attempts": 0, "finished": False}
            old = found.get(stage.name, new)
            self.fresh[stage.name], self.changes[stage.name] = new, _changes(old, new)
            self.rows[stage.name] = dict(new if self.changes[stage.name] else old)

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage finished with this command and these configs, and its output is still there."""
        return self.rows[stage.name]["finished"] and stage.output.exists()

    def begin_at(self, stages: Sequence[Stage]) -> None:
        """Prepare for running `stages`: the first, and what was made from its old output. It is on disk before anything
        runs, so that a stop in between leaves no stage that looks finished."""
        self.rows[stages[0].name]["finished"] = False
        self.rows |= {stage.name: self.fresh[stage.name] for stage in stages[1:]}
        for place, stage in enumerate(stages):
            why = self.changes[stage.name]
            if not why and place > 0:
                why = "an earlier stage has to run"
            if why and stage.folder is not None and stage.folder.exists():
                print(f"{stage.name}: {why}, so {stage.folder} is now {_set_aside(stage.folder)}", flush=True)
        self._write()

    def update(self, stage: Stage, **changes: object) -> None:
        self.rows[stage.name].update(changes)
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"stages": list(self.rows.values())})


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two rows of a stage, in words; empty if nothing."""
    if old["command"] != new["command"]:
        return "its command has changed"
    before, now = old.get("configs", {}), new["configs"]
    files = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
    return f"{', '.join(files)} changed" if files else ""


def _set_aside(folder: Path) -> Path:
    """Rename a folder to FOLDER.old, in place of an older one."""
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    return folder.rename(old)


def run_stages(stages: Sequence[Stage], out: str | Path) -> None:
    """Run every stage that is not done, in order; what follows one that ran runs too, as its input is new. StageError:
    a command failed, or another process is working in run folder `out`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with held(out, LOCK_PATIENCE_S) as lock:
        record = Record(out, stages)
        done = list(itertools.takewhile(record.is_done, stages))
        for number, stage in enumerate(stages, 1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            if number <= len(done):
                print(f"{title}: done before, {record.rows[stage.name]['seconds']:.0f} s", flush=True)
                continue
            if number == len(done) + 1:
                record.begin_at(stages[len(done):])
            print(f"{title}: {stage.command}", flush=True)
            _run(stage, record, out, lock)
            row = record.rows[stage.name]
            peak = row["peak_memory_bytes"] / 2**30
            print(f"{title}: {row['seconds']:.0f} s, peak memory {peak:.2f} GiB", flush=True)


def _run(stage: Stage, record: Record, out: Path, lock: int) -> None:
    """Run one stage to its end, keeping its row up to date."""
    row = record.rows[stage.name]
    log_path, before, start = out / row["log"], row["seconds"], time.monotonic()
    record.update(stage, finished=False, attempts=row["attempts"] + 1)
    process = subprocess.Popen([sys.executable, "-u", "-m", stage.module, *stage.arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=[lock])

    def note(peak: int) -> None:
        record.update(stage, seconds=before + time.monotonic() - start,
                      peak_memory_bytes=max(peak, row["peak_memory_bytes"]))

    meter = MemoryMeter(process.pid, note)
    assert process.stdout is not None
    try:
        last = _stream(process.stdout, log_path, stage.command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait()
        meter.stop()
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    note(max(meter.peak, largest))
    record.update(stage, cpu_seconds=row["cpu_seconds"] + usage.ru_utime + usage.ru_stime)
    if process.returncode:
        raise StageError(f"stage {stage.name} failed (exit code {process.returncode}); its log is {log_path}, "
                         f"the last lines:\n" + b"".join(last).decode(errors="replace"))
    if not stage.output.exists():
        raise StageError(f"stage {stage.name} ended without an error but did not write {stage.output}; its log is "
                         f"{log_path}")
    record.update(stage, finished=True)


def _stream(pipe: IO[bytes], log_path: Path, command: str) -> deque[bytes]:
    """Copy what a process prints to its log and the terminal; returns the last lines."""
    last: deque[bytes] = deque(maxlen=LAST_LINES)
    live = sys.stdout.isatty()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as log:
        log.write(f"$ {command}\n".encode())
        for line in pipe:
            log.write(line)
            log.flush()
            last.append(line)
            count = PROGRESS.search(line) if live else None
            if count is not None:
                line = _bar(line, count[1], count[2])
            elif live:
                line = CLEAR_LINE + line
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    return last


def _bar(line: bytes, done: bytes, total: bytes, width: int = 24) -> bytes:
    """A progress line drawn as a bar that the next line overwrites; the last one stays."""
    filled = min(width, width * int(done) // max(1, int(total)))
    text = b"[" + b"#" * filled + b"." * (width - filled) + b"] " + line.rstrip()
    return text[:shutil.get_terminal_size().columns - 1] + CLEAR_LINE + (b"\n" if done == total else b"\r")


class MemoryMeter:
    """Peak memory of process `pid` and all below it, DataLoader workers included; `note` gets the bytes every time.
    Sums proportional set sizes, in which shared pages count once. Without /proc the peak stays 0."""

    def __init__(self, pid: int, note: Callable[[int], None]) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(pid, note), daemon=True)
        self._thread.start()

    def _sample(self, pid: int, note: Callable[[int], None]) -> None:
        wait = 0.5
        while not self._stop.wait(wait):
            self.peak = max(self.peak, sum(map(_memory, _family(pid))))
            note(self.peak)
            wait = min(5.0, wait * 1.1)   # the kernel walks all pages for it: 40 ms for 4 processes of 1 GiB

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _family(int(child))


def _memory(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 once it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
