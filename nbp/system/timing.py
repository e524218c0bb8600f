"""Seconds of calls."""

import time
from collections.abc import Callable, Mapping

import torch


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, a GPU's queue drained."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best seconds of each of several functions, called in turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            best[name] = min(best[name], timed(function))
    return best
