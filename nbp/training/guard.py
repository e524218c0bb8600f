"""Detects training that has gone wrong, from values that the module reports at every step, and asks to roll back.

A value is wrong while it, or its recent mean, is not finite or beyond a bound, absolute or relative to its best running
mean. A wrong step is doubtful (no checkpoint is written, unless it is a run's last and the one before was
right), `patience` in a row are an alarm.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from nbp.training.data import Batch
from nbp.training.module import RollBack, TrainingModule

MEAN_DECAY = 0.9
RECENT_DECAY = 0.8   # a discriminator that diverges swings, and is right by chance at every few steps
WARMUP = 20          # steps before a running mean is a reference
LOOK_EVERY = {"cpu": 1, "other": 10}     # steps: each look at values on a GPU waits for it


def look_every(device: torch.device) -> int:
    """After how many steps values on a device are read by the host."""
    return LOOK_EVERY["cpu" if device.type == "cpu" else "other"]


@dataclass(frozen=True)
class Watch:
    """A value that must stay below (or above) a bound, function(best running mean so far) -> bound; else it has
    `meaning`. A `relative` bound depends on the best mean, so there is none before `WARMUP` steps; `spike` times that
    of the recent mean, and `slack`, is the bound of a single value."""

    name: str
    bound: Callable[[float], float]
    meaning: str
    below: bool = False
    relative: bool = True
    spike: float = 1.0
    slack: float = 0.0


# The discriminator's loss is 2 (hinge) or 1.4 where it decides by chance.
WATCHES = {watch.name: watch for watch in (
    # Nats. A step of two clips, on which small models learn faster, differs by as much from the next.
    Watch("loss", lambda best: best + 2.0, "the loss has diverged", slack=2.0),
    Watch("reconstruction", lambda best: 5 * best, "the reconstruction has diverged"),
    Watch("discriminator", lambda _: 3.0, "the discriminator has diverged", relative=False, spike=2.0),
    Watch("logit", lambda _: 100.0, "the discriminator has diverged", relative=False),
    Watch("logit_gap", lambda _: 1e-6, "the discriminator has collapsed: it tells nothing apart", below=True,
          relative=False),
    Watch("code_perplexity", lambda best: 0.1 * best, "the codes have collapsed", below=True),
)}


class Guard(Callback):
    """Watches `module.watched`, a dict of scalar tensors that `training_step` fills; the same verdict on every rank.
    `patience` wrong steps in a row are an alarm (0: never); `doubt` says why the last step is doubtful, or is None, and
    `num_wrong` how many in a row have been."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.doubt: str | None = None
        self.num_wrong = 0
        self._window: list[Tensor] = []
        self._unread: list[tuple[int, list[str], str, Tensor]] = []     # step, names, shape and values
        self._state: dict[str, dict[str, float]] = {name: {} for name in ("means", "best", "seen", "recent")}

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(values) for name, values in self._state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = {name: state[name] for name in self._state}

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, outputs: object,  # type: ignore[override]
                           batch: Batch, batch_idx: int) -> None:
        if not self.patience or not module.watched:
            return
        names = sorted(module.watched)
        self._window.append(torch.stack([module.watched[name].detach().float() for name in names]))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        values, self._window = module.mean_over_ranks(torch.stack(self._window).mean(0)), []  # (number of values,)
        self._unread.append((trainer.global_step, names, str(module.watched_shape), values))
        if len(self._unread) >= look_every(values.device):
            self.look(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """Judge the steps since the last look, in their order; before a checkpoint is written all must be. RollBack:
        an alarm."""
        unread, self._unread = self._unread, []
        found = iter(torch.cat([values for *_, values in unread]).tolist() if unread else ())
        for step, names, shape, _ in unread:
            self.judge_step({name: next(found) for name in names}, shape)
            if self.doubt is not None and trainer.is_global_zero and self.num_wrong in (1, self.patience):
                print(f"guard, step {step}: {self.doubt} ({self.num_wrong} steps in a row)", file=sys.stderr,
                      flush=True)
            if self.num_wrong >= self.patience:
                raise RollBack(f"step {step}: {self.doubt}")

    def judge_step(self, values: dict[str, float], shape: str = "") -> None:
        """Judge the values of `WATCHES` in one optimizer step, means over its micro-batches; sets `doubt`. Each `shape`
        has its own references, as clip length changes their scale."""
        reasons = [reason for name, value in values.items()
                   if (reason := self._judge_value(WATCHES[name], value, f"{name} {shape}"))]
        self.doubt = "; ".join(reasons) or None
        self.num_wrong = self.num_wrong + 1 if reasons else 0

    def _judge_value(self, watch: Watch, value: float, key: str) -> str | None:
        """Why a value is wrong, or None; a good one enters the running mean."""
        if not math.isfinite(value):
            return f"{watch.name} is {value}"
        means, bests, counts, recents = self._state.values()
        seen = counts.get(key, 0)
        if not watch.relative or seen >= WARMUP:
            bound = watch.bound(bests.get(key, math.nan))
            # One spike, however high, must not fill the recent mean for long.
            capped = value if watch.below else min(value, 2 * bound)
            recents[key] = recent = RECENT_DECAY * recents.get(key, capped) + (1 - RECENT_DECAY) * capped
            beyond = (min(value, recent) < bound if watch.below else
                      max((value - watch.slack) / watch.spike, recent) > bound)
            if beyond:
                return (f"{watch.meaning}: {watch.name} is {value:.4g}, recently {recent:.4g}; "
                        f"{'at least' if watch.below else 'at most'} {bound:.4g} is accepted")
        means[key] = mean = MEAN_DECAY * means.get(key, value) + (1 - MEAN_DECAY) * value
        pick = max if watch.below else min
        bests[key] = mean if seen < WARMUP else pick(bests.get(key, mean), mean)
        counts[key] = seen + 1
        return None
