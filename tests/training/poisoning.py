"""A training run under torchrun, one of whose processes meets numbers that are not finite in one step.

poisoning.py STEP RANK OUT CONFIG OVERRIDES...: each process writes OUT/RANK.pt with its weights and skipped steps.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from killing import add_callback

from nbp import train


class Poison(pl.Callback):
    """In the first attempt, at optimizer step `step` of rank `rank`: a NaN pixel, or NaN logits of a generator."""

    def __init__(self, step, rank, out):
        self.step, self.rank, self.out, self.hook = step, rank, Path(out), None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step != self.step or trainer.global_rank != self.rank or module.num_rollbacks:
            return
        if "video" in batch:
            batch["video"][0, 0, 0, 0, 0] = float("nan")
        else:
            self.hook = module.model.head.register_forward_hook(lambda _, inputs, logits: logits * float("nan"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def on_train_end(self, trainer, module):
        with module.whole_weights():
            torch.save({"skipped": int(module.skipped_steps), "rollbacks": module.num_rollbacks,
                        "weights": {name: p.detach().clone() for name, p in module.named_parameters()}},
                       self.out / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    step, rank, out, *arguments = sys.argv[1:]
    add_callback(Poison(int(step), int(rank), out))
    sys.exit(train.main(arguments))
