"""What both training modules share: moving average of the weights, steps that are skipped, seeds by step."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nbp.config import to_dict
from nbp.config.runs import Run
from nbp.generator.transformer import TransformerLayer
from nbp.tokenizer.units import CheapUnit
from nbp.training.data import Batch, mix_seed
from nbp.training.muon import Muon
from nbp.training.optim import build_optimizer
from nbp.training.resume import load_initial

M = TypeVar("M", bound=nn.Module)


class RollBack(Exception):
    """Go back to the last good checkpoint; the text is the reason."""


class TrainingModule(pl.LightningModule, Generic[M]):
    """A model, optionally its exponential moving average, and counters that checkpoints carry.

    Attributes:
        monitor: (metric, "min" or "max") that the best checkpoint is chosen by.
        frozen: network of the losses or of the data, which stays out of checkpoints and optimizer; or None.
        watched: scalar tensors of the last step, for `Guard`; `watched_shape` is the shape of its batch.
        ends_step: whether the micro-batch is the last one of its step; DeepSpeed's hooks run at every one.
        skips_on_device: steps of which a micro-batch is not finite are skipped by the optimizer's kernel, for which no
            device is waited for; else (DeepSpeed) micro-batches are, before the backward pass.
        rollbacks: how often the run has gone back, for checkpoints; `min_rollbacks` of them are newer than those.
    """

    max_steps: int
    monitor = ("val/loss", "min")
    skipped_steps: Tensor
    rollbacks: Tensor

    def __init__(self, model: M, run: Run, frozen: nn.Module | None = None, fresh: bool = True) -> None:
        super().__init__()
        if fresh and run.init_from is not None:     # a checkpoint's weights would take their place
            load_initial(model, run.kind, run.init_from)
        self.model: M = model
        self.run = run
        self._frozen = [frozen]   # in a list, where Lightning and PyTorch do not look for modules
        self.ema: M | None = copy.deepcopy(model).requires_grad_(False) if run.trainer.ema_decay else None
        if run.trainer.compile:
            compile_units(model)
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("rollbacks", torch.zeros((), dtype=torch.long))
        self.min_rollbacks = self._skipped_micro_steps = 0
        self.skips_on_device, self.ends_step = False, True
        self._finite: Tensor | None = None
        self.watched: dict[str, Tensor] = {}
        self.watched_shape: tuple[int, ...] = ()
        self.save_hyperparameters({"run": to_dict(run)})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with its peak `lr`."""
        raise NotImplementedError

    def tokens_per_clip(self, batch: Batch) -> int:
        """Codes that a clip of a batch is, or becomes."""
        raise NotImplementedError

    @property
    def frozen(self) -> nn.Module | None:
        return self._frozen[0]

    @property
    def averaged(self) -> M:
        """The weights to validate with and to export."""
        return self.model if self.ema is None else self.ema

    def whole_weights(self) -> AbstractContextManager:
        """Context in which every rank holds all parameters, also under ZeRO-3; all ranks must enter it."""
        parameters = [p for p in self.averaged.parameters() if hasattr(p, "ds_id")]
        if not parameters:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)

    def weights_are_finite(self) -> bool:
        """Whether every trained weight is finite, on all ranks."""
        parts = [getattr(p, "ds_tensor", p) for p in self.parameters() if p.requires_grad]
        finite = torch.stack([torch.isfinite(part.detach()).all().to(self.device) for part in parts]).all().float()
        return bool(self.mean_over_ranks(finite) == 1)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks; every rank must call it. The value itself without a trainer."""
        if self._trainer is None or self.trainer.world_size == 1:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)     # Lightning's reduce begins with a barrier, which waits for the device
        return total / self.trainer.world_size

    def on_fit_start(self) -> None:
        if self.frozen is not None:
            self.frozen.to(self.device).eval()

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        if self.run.trainer.compile:    # samples grow step by step, and each length would be compiled
            torch.compiler.set_stance("force_eager")

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        if self.run.trainer.compile:
            torch.compiler.set_stance("default")

    def on_train_start(self) -> None:
        self._seed = self.seed
        self.rollbacks.fill_(self.num_rollbacks)
        self._apply_changed_options()
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.skips_on_device = type(optimizer) in (torch.optim.AdamW, Muon)     # not what DeepSpeed wraps

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        built = build_optimizer(self.parameter_groups(), self.run.optim, self.max_steps)
        kept = ("betas", "weight_decay", "momentum")
        self._options = [{"lr": group["initial_lr"]} | {name: group[name] for name in kept if name in group}
                         for group in built["optimizer"].param_groups]
        return built

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """Clip by the global norm. Lightning's own refuses a fused optimizer in mixed precision, which may scale."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]],
                                           gradient_clip_val)

    def _apply_changed_options(self) -> None:
        """Learning rate, betas, momentum and decay are those of the configuration, not those in the checkpoint."""
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            groups = scheduler.optimizer.param_groups
            for index, (group, options) in enumerate(zip(groups, self._options)):
                scheduler.base_lrs[index] = group["initial_lr"] = options["lr"]
                group["lr"] = options["lr"] * scheduler.lr_lambdas[index](scheduler.last_epoch)
                group.update({name: value for name, value in options.items() if name != "lr"})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and other random choices by the step, so that a resumed run needs no generator state."""
        self.ends_step = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        micro_step = batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(mix_seed(self._seed, micro_step))

    @property
    def num_rollbacks(self) -> int:
        return max(int(self.rollbacks), self.min_rollbacks)

    @property
    def seed(self) -> int:
        """Seed of clips and random numbers; another one after a rollback, which would end the same way otherwise."""
        return self.run.trainer.seed + 1_000_003 * self.num_rollbacks

    def skip_if_not_finite(self, loss: Tensor) -> Tensor:
        """Return `loss`, or, where it is not finite on any rank and the optimizer's kernel does not skip the step, a
        zero loss that touches every parameter, which keeps replicas and gradient hooks in step; counted in
        `skipped_steps`. RollBack: under ZeRO-3, where no zero loss can touch them."""
        finite = self.mean_over_ranks(torch.isfinite(loss.detach()).float())
        if self.skips_on_device:
            self._finite = finite if self._finite is None else torch.minimum(self._finite, finite)
            return loss
        if finite == 1:
            return loss
        self.skipped_steps += 1
        self._skipped_micro_steps += 1
        if any(hasattr(p, "ds_id") for p in self.parameters()):
            raise RollBack(f"step {self.global_step}: the loss is not finite, and ZeRO-3 cannot skip a step")
        return zero_loss(self)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm of each parameter group; drop gradients that are not finite."""
        if not self.ends_step:
            return
        norms = []
        for index, group in enumerate(optimizer.param_groups):
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                norms.append(norm)
                self.log(f"train/grad_norm_{index}", norm)
        self.log("train/skipped_steps", self.skipped_steps.float())
        self.log("train/rollbacks", self.rollbacks.float())
        if self.skips_on_device and self._finite is not None:
            found = ~torch.isfinite(torch.stack(norms)).all() | (self._finite != 1)
            self.skipped_steps += found
            optimizer.found_inf = found.float()  # type: ignore[attr-defined]   # what gradient scalers set
            self._finite = None
            return
        skipped, self._skipped_micro_steps = self._skipped_micro_steps, 0
        broken = bool(norms) and not bool(torch.isfinite(torch.stack(norms)).all())
        self.skipped_steps += int(broken)
        # Without gradients AdamW leaves the weights alone; with zeros its momentum would go on moving them.
        if broken or skipped == self.trainer.accumulate_grad_batches:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None


class MovingAverage(Callback):
    """Updates the module's moving average, once per optimizer step; a callback, because checkpoints are written before
    the module's own hook."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # The step of the checkpoint is in the average already, also in the middle of accumulation.
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, *_: object) -> None:  # type: ignore[override]
        step = trainer.global_step
        if module.ema is not None and step != self._step:
            # A short run averages over about its last tenth, until that exceeds the decay's own horizon.
            decay = min(module.run.trainer.ema_decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(list(module.ema.parameters()), list(module.model.parameters()), step)
        self._step = step


def compile_units(model: nn.Module) -> None:
    """Compile every layer of a generator or residual unit of a tokenizer in place; weights keep their names.

    Parts and not the whole, since equal parts share what is compiled, and hooks between them (ZeRO) stay as they are.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64       # each width and size of a tokenizer's stages is compiled once
    torch.compiler.set_stance("default")            # also after a validation that ended in a rollback
    for part in model.modules():
        if isinstance(part, (TransformerLayer, CheapUnit)):
            part.compile(dynamic=False)


def zero_loss(module: nn.Module) -> Tensor:
    """Zero that reaches every trained parameter, so that each has a gradient and replicas find no unused ones."""
    return torch.stack([(p * 0).sum() for p in module.parameters() if p.requires_grad]).sum()
