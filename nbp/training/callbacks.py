"""Callbacks: the moving average, progress lines for logs, speed."""

import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class MovingAverage(Callback):
    """Updates the module's moving average; a callback, because checkpoints are written before the module's own hook."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.update_average()


class ProgressLines(Callback):
    """Step, rate, time left and loss every ten seconds, one line each; for logs, where a live bar is unreadable."""

    every_s = 10.0

    def on_train_start(self, trainer, module):
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = time.monotonic()
        done = trainer.global_step >= trainer.max_steps
        if trainer.is_global_zero and (now - self._last >= self.every_s or done):
            self._last = now
            rate = (trainer.global_step - self._first_step) / max(now - self._start, 1e-9)
            left = (trainer.max_steps - trainer.global_step) / max(rate, 1e-9)
            loss = trainer.callback_metrics.get("train/loss", float("nan"))
            print(f"step {trainer.global_step}/{trainer.max_steps}, {rate:.2f} steps/s, {left:.0f} s left, "
                  f"loss {float(loss):.4f}", file=sys.stderr, flush=True)


def progress_callback():
    """A live bar on a terminal, lines in a log."""
    if sys.stderr.isatty():
        return pl.callbacks.RichProgressBar()
    return ProgressLines()
