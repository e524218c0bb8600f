"""Batches are as large as memory holds, and nothing is lost where one was not."""

import numpy as np
import pytest
import torch

from nbp.system.command import UserError
from nbp.workflows.generating import Halving, Made


def run(limit, batches, size, bad=()):
    tried = []

    def make(batch):
        tried.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        met = [number for number in batch if number not in bad]
        return Made(met, np.zeros(0), None) if met else None

    halving = Halving(make, size)
    return [made.requests for batch in batches for made in halving(batch)], tried


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(capsys):
    made, tried = run(3, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10]], 8)
    assert made == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1] and "from here on 2 at a time" in capsys.readouterr().err


def test_a_short_batch_is_halved_too():
    assert run(1, [[0, 1, 2]], 8) == ([[0], [1], [2]], [3, 1, 1, 1])


def test_batches_that_fit_stay_whole_and_bad_files_are_left_out():
    assert run(8, [[0, 1, 2], [3, 4]], 3, bad=(1, 3, 4)) == ([[0, 2]], [3, 2])


def test_a_single_clip_that_does_not_fit_is_said():
    with pytest.raises(UserError, match="does not hold a single clip; --precision bf16"):
        run(0, [[0, 1]], 2)
