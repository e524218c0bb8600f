"""Work on a few threads."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from nbp.system.threads import MOST, for_each


@pytest.fixture(params=[1, 2, 64])
def threads(request):
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(usual)


@pytest.mark.parametrize("count", [0, 1, 2, 9, 100])
@pytest.mark.parametrize("at_least", [1, 8])
def test_each_number_is_called_once(threads, count, at_least):
    called, where = [], set()

    def call(index):
        called.append(index)
        where.add(threading.get_ident())

    for_each(call, count, at_least)
    assert sorted(called) == list(range(count))
    assert len(where) <= max(1, min(threads, MOST, count // at_least))


@pytest.mark.parametrize("bad", [0, 7])
def test_an_error_of_any_part_is_the_callers(threads, bad):
    def call(index):
        if index == bad:
            raise ValueError(f"number {index}")

    with pytest.raises(ValueError, match=f"number {bad}"):
        for_each(call, 8)


def test_two_threads_work_at_once():
    """Each waits for the other, which one thread would do for ever."""
    usual, meeting = torch.get_num_threads(), threading.Barrier(2, timeout=30)
    torch.set_num_threads(2)
    try:
        for_each(lambda index: meeting.wait(), 2)
    finally:
        torch.set_num_threads(usual)


def test_a_thread_may_outlive_the_main_one():
    """Python takes no more work for its pools by then."""
    code = """
import threading, time
import torch
from nbp.system.threads import for_each
torch.set_num_threads(2)
def late():
    time.sleep(0.5)
    done = []
    for_each(done.append, 5)
    print(sorted(done))
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "[0, 1, 2, 3, 4]" in done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads):
    for_each(lambda index: None, 8)
    child = os.fork()
    if child == 0:
        signal.alarm(30)        # without them it would wait for ever
        for_each(lambda index: None, 8)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
