"""The order of training clips as a pure function of (seed, step, rank).

Nothing needs to be saved to resume in the middle of an epoch: a sampler that starts at step s
yields exactly what an uninterrupted one yields from step s on.
"""

import math
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


@dataclass
class Images:
    """Micro-batches of single frames among those of clips, evenly spread.

    `num_items` items from number `first_item` on are drawn in an order of their own.
    """

    share: float           # of the micro-batches, in [0, 1)
    batch_size: int
    num_items: int
    first_item: int = 0

    def takes(self, micro_batch):
        """Whether a micro-batch, counted from the start of the run, holds images."""
        return math.floor((micro_batch + 1) * self.share + 1e-9) > math.floor(micro_batch * self.share + 1e-9)


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
        images: `Images`, or None; all ranks take them at the same time.
    """

    def __init__(self, num_items, phases, accumulate=1, seed=0, rank=0, world=1, start_step=0, images=None):
        if num_items < 1:
            raise ValueError("the training set is empty")
        self.clips, self.phases, self.accumulate = _Stream(num_items, seed), phases, accumulate
        self.rank, self.world, self.start_step = rank, world, start_step
        self.images = images
        if self.images is not None:
            self.pictures = _Stream(images.num_items, mix_seed(seed, 1 << 62), images.first_item)

    def __len__(self):
        """Micro-batches of the whole run, those before `start_step` included."""
        return sum(phase.steps for phase in self.phases) * self.accumulate

    def __iter__(self):
        micro_batch, drawn = 0, {}
        for phase in self.phases:
            for _ in range(phase.steps * self.accumulate):
                stream, size, num_frames = self.clips, phase.batch_size, phase.num_frames
                if self.images is not None and self.images.takes(micro_batch):
                    stream, size, num_frames = self.pictures, self.images.batch_size, 1
                first = drawn.get(stream, 0)
                drawn[stream] = first + size * self.world
                if micro_batch >= self.start_step * self.accumulate:
                    start = first + self.rank * size
                    yield [stream.key(n, num_frames) for n in range(start, start + size)]
                micro_batch += 1


class _Stream:
    """An endless shuffled sequence of items: epoch after epoch, each in an order of its own."""

    def __init__(self, num_items, seed, first_item=0):
        self.num_items, self.seed, self.first_item = num_items, seed, first_item
        self._epoch = None

    def key(self, n, num_frames):
        """`ClipKey` of the n-th draw."""
        epoch, position = divmod(n, self.num_items)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, -1 - epoch))
            self._epoch, self._order = epoch, torch.randperm(self.num_items, generator=generator)
        return ClipKey(self.first_item + int(self._order[position]), num_frames, mix_seed(self.seed, n))


def mix_seed(seed, n):
    """A well-spread 63-bit seed of two integers (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + n * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 31)) >> 1
