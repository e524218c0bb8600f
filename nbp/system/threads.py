"""Work of numpy on a few threads: it lets others run during each call, and torch's own threads stay out of it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

MOST = 4        # threads: already with 4 on two cores they wait for the interpreter between calls


def for_each(function: Callable[[int], None], count: int, at_least: int = 1) -> None:
    """Call function(0), ..., function(count - 1), divided among as many threads as torch uses, up to `MOST`, each with
    `at_least` calls. They must not compute with torch, which would start threads of its own from each."""
    parts = max(1, min(torch.get_num_threads(), MOST, count // at_least))

    def some(part: int) -> None:
        for index in range(count * part // parts, count * (part + 1) // parts):
            function(index)

    others, mine = [], [0]
    for part in range(1, parts):
        try:
            others.append(_threads().submit(some, part))
        except RuntimeError:        # the interpreter is ending, but for the thread that calls
            mine.append(part)
    for part in mine:
        some(part)
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST - 1, "nbp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)       # threads do not come along
