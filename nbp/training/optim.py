"""Parameter groups and learning-rate schedules."""

import math
from typing import Any

import torch
from torch import nn

from nbp.config.runs import OptimConfig
from nbp.training.muon import Muon


def or_else(rate: float | None, other: float) -> float:
    """`rate`, 0 included, or `other` where there is none."""
    return other if rate is None else rate


def weight_decay_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: weight decay on Linear weights only (as GPT-2 and the official recipe), none elsewhere."""
    # A weight that is made of parts (`nbp.generator.levels`) is a sum; the matrix in it is what can decay.
    linear = {id(own) for m in module.modules() if isinstance(m, nn.Linear)
              for own in [dict(m.named_parameters()).get("parametrizations.weight.original", m.weight)]}
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in linear], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in linear], "lr": lr, "weight_decay": 0.0},
    ]


def lr_factor(step: int, optim: OptimConfig, max_steps: int) -> float:
    """Multiplier of the peak learning rate at `step`: warm-up from 1 / warmup_steps, then decay to `final_lr_ratio`."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    start = optim.warmup_steps
    if optim.decay_steps is not None:
        start = max(start, max_steps - 1 - optim.decay_steps)
    if optim.schedule == "constant" or step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, max_steps - 1 - start))
    decay = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * decay


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig, max_steps: int) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns: AdamW, or Muon with it, and a per-step schedule."""
    betas = (optim.betas[0], optim.betas[1])
    optimizer: torch.optim.Optimizer
    if optim.optimizer == "muon":
        optimizer = Muon(groups, betas=betas, momentum=optim.muon_momentum)
    else:
        optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, optim, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
