"""Where the time goes: a trace of a stretch of work by torch's profiler, and the operations that take most of it."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
TOP = 15


class Trace:
    """What is done between `start` and `stop`; `folder` receives top.txt and trace.json for ui.perfetto.dev or
    chrome://tracing."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._profiler: torch.profiler.profile | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._profiler is not None

    def start(self) -> None:
        self._profiler = torch.profiler.profile()
        self._profiler.start()

    def stop(self) -> None:
        """Write the trace and print its top."""
        assert self._profiler is not None
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        top = self._profiler.key_averages().table(sort_by=order, row_limit=TOP, max_name_column_width=40)
        (self.folder / "top.txt").write_text(top)
        print(f"{top}\nwrote {self.folder / 'trace.json'}", flush=True)
        self._profiler = None

    def of_first_call(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, of whose first call this is the trace."""
        called = False

        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal called
            if called:
                return function(*args, **kwargs)
            called = True
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()

        return traced
