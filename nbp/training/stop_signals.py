"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (preemption, SLURM's --signal): a run saves and stops at the next whole step."""

import signal
import sys
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A signal to a whole job reaches a process twice: by itself, and once more from the torchrun above it.
REPEAT_S = 10.0


class Stopped(Exception):
    """Training ended on request, its checkpoint written; `signum` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Notes a signal instead of dying from it. One that comes `REPEAT_S` later or more ends the process at once."""

    def __init__(self) -> None:
        self.received = 0   # signal number
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._note)

    def restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = signum, time.monotonic()
            print(f"{signal.Signals(signum).name}: saving after this step (within ten where GPUs have to agree), then "
                  f"stopping; once more after {REPEAT_S:.0f} s to stop at once", file=sys.stderr, flush=True)
        elif time.monotonic() - self._since > REPEAT_S:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def agreed(self, trainer: pl.Trainer) -> int:
        """Signal number that any rank received, 0 for none; every rank must call it."""
        if trainer.world_size == 1:
            return self.received
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)


def ignore_in_worker(_: int) -> None:
    """For DataLoader workers: signals to a whole process group must not kill them before the run has saved."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
