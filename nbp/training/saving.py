"""When a run saves: every n steps, at its best validation, on a stop signal and at its end.

Checkpoints are written between two optimizer steps, after the metrics of the first are on disk: a killed run that
goes on from one logs exactly what an uninterrupted run logs.
"""

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from nbp.config import save_config
from nbp.system.files import atomic_path
from nbp.training import checkpoints
from nbp.training.data import ClipDataModule
from nbp.training.guard import Guard, look_every
from nbp.training.module import TrainingModule
from nbp.training.resume import Resume
from nbp.training.stop_signals import Stopped, StopSignals


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, then renames; reads the one that `resume` picks."""

    def __init__(self, resume: Resume) -> None:
        super().__init__()
        self.resume = resume

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise save_error(path, error) from error

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        path = self.resume.choose(path)
        checkpoint = super().load_checkpoint(path, weights_only=True)
        self.resume.check_config(checkpoint["hyper_parameters"]["run"], path)
        set_batches(checkpoint["loops"]["fit_loop"], checkpoint["global_step"] * self.resume.run.accumulate)
        return checkpoint


def save_error(path: str | Path, error: Exception) -> OSError:
    """What to raise when a checkpoint cannot be written."""
    free = shutil.disk_usage(Path(path).parent).free / 2**20
    return OSError(f"cannot write checkpoint {path}: {error} ({free:.0f} MiB free there). Earlier checkpoints are "
                   "whole; make room and run the same command again")


class Checkpoints(pl.callbacks.Checkpoint):
    """Writes, links and prunes the checkpoints of a run, and stops it on a signal; `guard` may hold one back.
    `newest_written` is the path of the last checkpoint that this object wrote, or None."""

    def __init__(self, guard: Guard, resume: Resume) -> None:
        config = resume.run.trainer
        self.folder = Path(config.out) / "checkpoints"
        self.every, self.keep_last, self.accumulate = (
            config.checkpoint_every_steps, config.keep_last, resume.run.accumulate)
        self.guard, self.resume, self.signals = guard, resume, StopSignals()
        self.newest_written: Path | None = None
        self.best: float | None = None   # value of the best validation so far, by `self.judge`
        self.best_step: int | None = None
        self.judge: list[Any] = []
        self._clips_then = 0
        self._scored = (-1, math.nan)    # step and value of the last validation
        self._saved_step, self._overdue = 0, False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "judge": self.judge}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        then = state.get("judge", [*self.judge[:2], self._clips_then])
        if then == self.judge[:len(then)]:      # earlier checkpoints say less of it
            self.best, self.best_step = state["best"], state.get("best_step")

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What earlier checkpoints do not say of their judge, their configuration does."""
        self._clips_then = checkpoint["hyper_parameters"]["run"]["trainer"].get("val_fvd_clips", 0)

    def setup(self, trainer: pl.Trainer, module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        """What chooses the best: a distance of another number of clips, another score, or one of other validation clips
        is no value to beat."""
        data: ClipDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.judge = [*module.monitor, module.run.trainer.val_fvd_clips, data.validation_sha256()]

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        self.signals.install()
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            save_config(module.run, self.folder.parent / "config.yaml")
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoints.clean(self.folder)
            checkpoints.abandon_newer(self.folder, self.resume.chosen)
            if not checkpoints.link_best(self.folder, self.best_step):
                self.best = self.best_step = None
        self.best, self.best_step = trainer.strategy.broadcast((self.best, self.best_step))    # and wait for rank 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: TrainingModule,  # type: ignore[override]
                             batch: object, batch_idx: int) -> None:
        step = trainer.global_step
        if batch_idx % self.accumulate:
            return
        due = step % self.every == 0 or self._overdue
        if step != self._saved_step and due or self._improved(trainer, module):
            self._save(trainer, module)     # once more where a validation was stopped, and its checkpoint is the best
        # To agree is to wait; where steps take seconds a signal can't.
        every = 1 if trainer.world_size == 1 or self.accumulate > 1 else look_every(trainer.strategy.root_device)
        if step % every == 0:
            self.stop_if_asked(trainer, module)

    def on_validation_batch_start(self, trainer: pl.Trainer, module: TrainingModule, *_: object) -> None:  # type: ignore[override]
        self.stop_if_asked(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        value = trainer.callback_metrics.get(module.monitor[0])
        if value is not None:
            # Rounding may differ between machines, and all ranks must agree whether it is the best.
            self._scored = (trainer.global_step, trainer.strategy.broadcast(float(value)))

    def on_train_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.global_step != self._saved_step or self._improved(trainer, module):
            self._save(trainer, module, last=True)
        self.signals.restore()

    def on_exception(self, *_: object) -> None:
        self.signals.restore()

    def stop_if_asked(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Save and raise `Stopped` if a signal has come; every rank must call it, between two steps."""
        signum = self.signals.agreed(trainer)
        if signum:
            if trainer.global_step != self._saved_step:
                self._save(trainer, module)
            raise Stopped(signum)

    def _improved(self, trainer: pl.Trainer, module: TrainingModule) -> bool:
        step, value = self._scored
        if step != trainer.global_step or not math.isfinite(value):
            return False
        sign = 1 if module.monitor[1] == "max" else -1
        return self.best is None or sign * value > sign * self.best

    def _save(self, trainer: pl.Trainer, module: TrainingModule, last: bool = False) -> None:
        """Write the checkpoint of this step; not while the guard doubts it or a weight is not finite. A single doubtful
        step waits for the next, unless it is the `last`."""
        step = trainer.global_step
        self.guard.look(trainer)
        doubt = self.guard.doubt
        if last and doubt is not None and self.guard.num_wrong == 1:
            if trainer.is_global_zero:
                print(f"step {step}, the last: saved, although {doubt}", file=sys.stderr, flush=True)
            doubt = None
        if doubt is None and not module.weights_are_finite():
            doubt = "a weight is not finite"
        self._overdue = doubt is not None
        if self._overdue:
            if trainer.is_global_zero:
                print(f"step {step}: no checkpoint, {doubt}", file=sys.stderr, flush=True)
            return
        improved = self._improved(trainer, module)
        if improved:
            self.best_step, self.best = step, self._scored[1]
        path = checkpoints.checkpoint_path(self.folder, step)
        trainer.save_checkpoint(path, weights_only=False)   # written whole, with optimizer and loops
        self._saved_step, self.newest_written = step, path
        if trainer.is_global_zero:
            checkpoints.link(self.folder, checkpoints.LAST, path)
            if improved:
                checkpoints.link(self.folder, checkpoints.BEST, path)
            checkpoints.prune(self.folder, self.keep_last)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        pause_between_steps(checkpoint["loops"]["fit_loop"], trainer.global_step, self.accumulate,
                            validated=not trainer.validating)


def pause_between_steps(loop: dict[str, Any], step: int, accumulate: int, validated: bool) -> None:
    """Rewrite the state of Lightning's loops to one meaning, wherever it was taken: `step` steps done, nothing begun.

    This state is private to Lightning, which may change it: tests/training/test_loop_state.py checks what it relies on.
    If not `validated`, a validation that is due at this step is not done: the resumed run begins with it.
    """
    set_batches(loop, step * accumulate)
    for scope in ("total", "current"):
        loop["epoch_progress"][scope].update(ready=1, started=1, processed=0, completed=0)
        # ... and of one taken inside a validation, which it then runs again.
        begun = 0 if validated else 1
        loop["epoch_loop.val_loop.batch_progress"][scope].update(ready=begun, started=begun, processed=0, completed=0)
    loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    # Counts the rows of the logs; Lightning adds one on the way back, and one more after a validation.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1 if validated else step - 2


def set_batches(loop: dict[str, Any], batches: int) -> None:
    """Let a stored loop have done so many micro-batches: a run may go on with another number of them in a step."""
    for scope in ("total", "current"):
        # Lightning's own mark of a checkpoint taken at the end of a batch.
        loop["epoch_loop.batch_progress"][scope].update(ready=batches, started=batches, processed=batches,
                                                        completed=batches - 1)
