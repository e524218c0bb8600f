"""A trace of a few training steps."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from nbp.system.profiling import Trace

WARM_UP, STEPS = 2, 3     # micro-batches


class ProfiledSteps(Callback):
    """Traces `STEPS` micro-batches behind the first ones into OUT/profile, loading of data included."""

    def __init__(self, out: str | Path) -> None:
        self.trace, self.seen = Trace(Path(out) / "profile"), 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.seen += 1
        if self.seen == WARM_UP and trainer.is_global_zero:
            self.trace.start()
        if self.seen == WARM_UP + STEPS and self.trace.runs:
            self.trace.stop()

    def on_train_end(self, *_: object) -> None:
        if self.trace.runs:
            self.trace.stop()
