"""Options of the suite: which slow tests run, and in which order.

Tests marked `slow` run only with --slow; a test of many minutes states its seconds, `slow(seconds=240)`, from which
--slow-share makes shares that take about equally long.
"""

import argparse
import random

import pytest

# These start first: whole files go to one process, and a long one at the end would keep the others waiting.
LONGEST_FILES = ("test_quickstart.py", "test_generator_training.py", "test_training.py", "test_checkpoints.py")
SLOW_S = 40.0  # of a slow test that states nothing


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--slow-share", metavar="K/N", type=share_of, help="run the K-th of N shares of them, from 1 on")
    parser.addoption("--random-order", metavar="SEED", type=int, help="run the tests in a random order")


def share_of(text):
    """(k, n) of "k/n"."""
    k, n = map(int, text.split("/"))
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"{text} is no share: K/N with 1 <= K <= N")
    return k, n


def slow_share(slow, k, n):
    """Names of the k-th of n shares of {name: seconds}: the longest first, each to the share with least to do."""
    shares = [[0.0, []] for _ in range(n)]
    for name in sorted(slow, key=lambda name: (-slow[name], name)):
        least = min(shares, key=lambda share: share[0])
        least[0] += slow[name]
        least[1].append(name)
    return set(shares[k - 1][1])


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)
    if (seed := config.getoption("--random-order")) is not None:
        random.Random(seed).shuffle(items)
    marks = {item: item.get_closest_marker("slow") for item in items}
    slow = {item.nodeid: mark.kwargs.get("seconds", SLOW_S) for item, mark in marks.items() if mark}
    share = config.getoption("--slow-share")
    chosen = slow.keys() if config.getoption("--slow") else slow_share(slow, *share) if share else ()
    for item in items:
        if item.nodeid in slow and item.nodeid not in chosen:
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
