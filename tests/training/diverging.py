"""A training run whose critics diverge, the same way on every processor.

diverging.py STEP TIMES CONFIG OVERRIDES..., also under torchrun: as `nbp.train`, but with `Diverge`.
"""

import sys

import pytorch_lightning as pl
import torch
from killing import add_callback

from nbp import train


class Diverge(pl.Callback):
    """Before every step from `step` on, in the first `times` attempts: every logit of the critics is about 10,000.

    The hinge loss of what is not real is then about 10,000 as well, whatever came before, and the step that follows
    leaves it there.
    """

    def __init__(self, step, times):
        self.step, self.times, self.attempts = step, times, 0

    def on_train_start(self, trainer, module):
        self.attempts += 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step >= self.step and self.attempts <= self.times:
            for name, p in module.discriminator.named_parameters():
                if name.endswith("head.bias"):
                    with torch.no_grad():
                        p.fill_(1e4)


if __name__ == "__main__":
    step, times, *arguments = sys.argv[1:]
    add_callback(Diverge(int(step), int(times)))
    sys.exit(train.main(arguments))
