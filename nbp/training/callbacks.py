"""Callbacks: progress lines for logs, pictures of reconstructions, atomic checkpoints."""

import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback

from nbp.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, then renames: a crash or a full disk never leaves half a file."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


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


class ReconstructionPictures(Callback):
    """At each validation, frames of the first clips above their reconstructions, as `samples/stepNNN.png`."""

    num_clips = 4
    num_frames = 5

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx or not trainer.is_global_zero or trainer.sanity_checking:
            return
        rows = []
        for real, fake in list(zip(batch["video"], outputs))[:self.num_clips]:
            pick = torch.linspace(0, real.shape[1] - 1, self.num_frames).round().long().tolist()
            rows += [torch.cat([clip[:, t] for t in pick], -1) for clip in (real.cpu(), fake.float().cpu())]
        save_picture(torch.cat(rows, 1), self.folder / f"step{trainer.global_step:07d}.png")


def save_picture(image, path):
    """Write an image (3, H, W) in [0, 1] as PNG, atomically."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def progress_callback():
    """A live bar on a terminal, lines in a log."""
    if sys.stderr.isatty():
        return pl.callbacks.RichProgressBar()
    return ProgressLines()
