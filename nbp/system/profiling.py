"""Where the time goes: a trace of a stretch of work by torch's profiler, and the operations that take most of it."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
TOP = 15


class Trace(torch.profiler.profile):
    """What is done between `start` and `stop`, as far as `schedule` has it recorded (None: all); `folder` receives
    top.txt, which is printed, and trace.json for ui.perfetto.dev or chrome://tracing."""

    def __init__(self, folder: str | Path,
                 schedule: Callable[[int], torch.profiler.ProfilerAction] | None = None) -> None:
        super().__init__(schedule=schedule, on_trace_ready=self._write)
        self.folder = Path(folder)

    def _write(self, _: torch.profiler.profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        top = self.key_averages().table(sort_by=order, row_limit=TOP, max_name_column_width=40)
        (self.folder / "top.txt").write_text(top)
        print(f"{top}\nwrote {self.folder / 'trace.json'}", flush=True)

    def of_first_call(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, of whose first call this is the trace."""
        calls = itertools.count()

        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            with nullcontext() if next(calls) else self:
                return function(*args, **kwargs)

        return traced
