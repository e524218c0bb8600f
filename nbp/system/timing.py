"""Seconds of a call."""

import time
from collections.abc import Callable

import torch


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, a GPU's queue drained."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
