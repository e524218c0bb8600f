"""How far a long loop has come, with its rate and the time left: a live bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class LogLines:
    """One line every ten seconds, so that a log stays readable: "train: 24/100 steps, 1.20 steps/s, 63 s left". `total`
    includes `initial` items of an earlier, interrupted run."""

    every_s = 10.0

    def __init__(self, total: int, description: str, unit: str = "it", initial: int = 0) -> None:
        self.total, self.description, self.unit, self.initial = total, description, unit, initial
        self._start = self._last = time.monotonic()

    def show(self, done: int, more: Callable[[], str] = str, now: bool = False) -> None:
        """Print the line, with what `more` returns at its end, if the last is ten seconds old, or `now`."""
        time_s = time.monotonic()
        if not now and time_s - self._last < self.every_s:
            return
        self._last = time_s
        rate = (done - self.initial) / max(time_s - self._start, 1e-9)
        left = (self.total - done) / max(rate, 1e-9)
        print(f"{self.description}: {done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s, {left:.0f} s left"
              f"{more()}", file=sys.stderr, flush=True)


def progress(iterable: Iterable[T], total: int, description: str, unit: str = "it", initial: int = 0) -> Iterator[T]:
    """Yield from `iterable` and show how far it is; for `total` and the others see `LogLines`."""
    if sys.stderr.isatty():
        yield from _bar(iterable, total, description, unit, initial)
        return
    lines, done = LogLines(total, description, unit, initial), initial
    for item in iterable:
        yield item
        done += 1
        lines.show(done)
    lines.show(done, now=True)


def _bar(iterable: Iterable[T], total: int, description: str, unit: str, initial: int) -> Iterator[T]:
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
