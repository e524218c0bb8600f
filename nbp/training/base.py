"""What both training modules share: moving average of the weights and a guard against non-finite steps."""

import copy

import pytorch_lightning as pl
import torch

from nbp.config import to_dict
from nbp.training.initial import load_initial
from nbp.training.sampler import mix_seed


class TrainingModule(pl.LightningModule):
    """A model, optionally its exponential moving average, and counters that checkpoints carry.

    Args:
        model: the module that is trained and exported.
        run: `TokenizerRun` or `GeneratorRun`; stored in every checkpoint.
    """

    def __init__(self, model, run):
        super().__init__()
        if run.init_from is not None:
            load_initial(model, run.kind, run.init_from)
        self.model, self.run = model, run
        self.ema_decay = ema_decay = run.trainer.ema_decay
        self.ema = copy.deepcopy(model).requires_grad_(False) if ema_decay else None
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.long))
        self.save_hyperparameters({"run": to_dict(run)})

    @property
    def averaged(self):
        """The weights to validate with and to export."""
        return self.model if self.ema is None else self.ema

    def on_train_start(self):
        """A resumed run has averaged its step already, also in the middle of accumulation."""
        self._ema_step = self.global_step

    def on_train_batch_start(self, batch, batch_idx):
        """Seed dropout and other random choices by the step, so that a resumed run needs no generator state."""
        micro_step = batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(mix_seed(self.run.trainer.seed, micro_step))

    def guard(self, loss):
        """Return `loss`, or, where it is not finite on any rank, a zero loss that touches every parameter.

        The zero keeps replicas and gradient hooks in step; the skip is counted in `skipped_steps`.
        """
        finite = torch.isfinite(loss.detach()).float()
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce(finite, reduce_op="mean")
        if finite == 1:
            return loss
        self.skipped_steps += 1
        return sum((p * 0).sum() for p in self.parameters() if p.requires_grad)

    def on_before_optimizer_step(self, optimizer):
        """Log the gradient norm of each parameter group; drop gradients that are not finite."""
        norms = []
        for index, group in enumerate(optimizer.param_groups):
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                norms.append(norm)
                self.log(f"train/grad_norm_{index}", norm)
        self.log("train/skipped_steps", self.skipped_steps.float())
        if norms and not torch.isfinite(torch.stack(norms)).all():
            self.skipped_steps += 1
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    def update_average(self):
        """Update the moving average, once per optimizer step."""
        if self.ema is None or self.global_step == self._ema_step:
            return
        self._ema_step = self.global_step
        # A short run averages over about its last tenth, until that exceeds the decay's own horizon.
        decay = min(self.ema_decay, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), [p.detach() for p in self.model.parameters()], 1 - decay)
