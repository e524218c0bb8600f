"""Training of the generator by next-block prediction (arXiv 2502.07737, section 3.2).

Batches hold cached token indices, or video that a frozen tokenizer turns into indices here.
Legend: B batch, t h w latent grid.
"""

import math

import torch

from nbp.generator.model import Generator
from nbp.training.base import TrainingModule
from nbp.training.muon import muon_groups
from nbp.training.optim import weight_decay_groups


class GeneratorModule(TrainingModule):
    """Trains a `Generator`.

    Args:
        run: `nbp.config.GeneratorRun`.
        tokenizer: frozen `Tokenizer` for batches of video; None for batches of tokens.
        encode_condition: function(batch) -> condition ids (B, C) int64, or None for unconditional models.
    """

    def __init__(self, run, tokenizer=None, encode_condition=None):
        super().__init__(Generator(run.model), run)
        self.max_steps = run.max_steps
        if run.trainer.val_fvd_clips:
            self.monitor = ("val/gfvd", "min")
        self.encode_condition = encode_condition
        self._frozen = [tokenizer]  # in a list: a frozen network stays out of the checkpoint

    def parameter_groups(self):
        optim = self.run.optim
        if optim.optimizer == "muon":
            return muon_groups(self.model, [self.model.head], optim.lr, optim.muon_lr, optim.weight_decay)
        return weight_decay_groups(self.model, optim.lr, optim.weight_decay)

    def on_fit_start(self):
        if self._frozen[0] is not None:
            self._frozen[0].to(self.device).eval()

    def training_step(self, batch, batch_idx):
        indices = self._indices(batch)
        loss = self.model.loss(indices, self._condition(batch))
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.watched, self.watched_shape = {"loss": loss.detach()}, tuple(indices.shape)
        return self.guard(loss)

    def validation_step(self, batch, batch_idx):
        indices = self._indices(batch)
        nll, rank = self.averaged.score(indices, self._condition(batch))
        metrics = {"val/loss": nll.mean(), "val/top1": (rank < 1).float().mean(), "val/top5": (rank < 5).float().mean()}
        self.log_dict(metrics, sync_dist=True, batch_size=len(indices))

    def tokens_per_clip(self, batch):
        """Codes of a clip."""
        return math.prod(self.run.model.grid)

    def indices_and_condition(self, batch):
        """Codes (B, t, h, w) int64 and condition ids (B, C), or None, of a batch of tokens or of video."""
        return self._indices(batch).to(self.device), self._condition(batch)

    @torch.no_grad()
    def _indices(self, batch):
        if "indices" in batch:
            return batch["indices"]
        return self._frozen[0].encode(batch["video"])[1].long()

    def _condition(self, batch):
        return None if self.encode_condition is None else self.encode_condition(batch).to(self.device)
