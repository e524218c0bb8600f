"""The order of training clips as a pure function of (seed, step, rank).

Nothing needs to be saved to resume in the middle of an epoch: a sampler that starts at step s
yields exactly what an uninterrupted one yields from step s on.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class ClipKey(NamedTuple):
    """One training sample: which item of the dataset, how many frames, and the seed of its random choices."""

    index: int
    num_frames: int
    seed: int


@dataclass
class Phase:
    """`steps` optimizer steps with `batch_size` clips of `num_frames` frames per device and micro-batch."""

    steps: int
    batch_size: int
    num_frames: int


class StepBatchSampler(torch.utils.data.Sampler):
    """Yields lists of `ClipKey`, one list per micro-batch of this rank.

    Each epoch visits every item once in a fresh order; the last, incomplete batch of an epoch is
    filled up from the next one.

    Args:
        num_items: size of the dataset.
        phases: list of `Phase`, run one after the other.
        accumulate: micro-batches per optimizer step.
        seed, rank, world: random seed, this process, number of processes.
        start_step: optimizer steps already done.
    """

    def __init__(self, num_items, phases, accumulate=1, seed=0, rank=0, world=1, start_step=0):
        if num_items < 1:
            raise ValueError("the training set is empty")
        self.num_items, self.phases, self.accumulate = num_items, phases, accumulate
        self.seed, self.rank, self.world, self.start_step = seed, rank, world, start_step

    def __len__(self):
        """Micro-batches of the whole run, those before `start_step` included."""
        return sum(phase.steps for phase in self.phases) * self.accumulate

    def __iter__(self):
        first, step = 0, 0
        for phase in self.phases:
            for _ in range(phase.steps):
                for _ in range(self.accumulate):
                    if step >= self.start_step:
                        start = first + self.rank * phase.batch_size
                        yield [self._key(n, phase.num_frames) for n in range(start, start + phase.batch_size)]
                    first += phase.batch_size * self.world
                step += 1

    def _key(self, n, num_frames):
        epoch, position = divmod(n, self.num_items)
        return ClipKey(int(self._order(epoch)[position]), num_frames, mix_seed(self.seed, n))

    def _order(self, epoch):
        if getattr(self, "_cached_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, -1 - epoch))
            self._cached_epoch, self._cached_order = epoch, torch.randperm(self.num_items, generator=generator)
        return self._cached_order


def mix_seed(seed, n):
    """A well-spread 63-bit seed of two integers (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + n * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 31)) >> 1
