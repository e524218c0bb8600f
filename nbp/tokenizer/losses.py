"""Loss terms of the tokenizer as plain functions; `training/tokenizer.py` weighs and sums them.

Legend: B batch, n patches, V codes. Logits are lists with one (B, n) tensor per critic; every loss is
a float32 scalar.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nbp.tokenizer.discriminator import Discriminator


def reconstruction_loss(reconstruction: Tensor, video: Tensor, l1: float, l2: float) -> Tensor:
    """l1 * mean |x - y| + l2 * mean (x - y)^2 for videos (B, 3, T, H, W) in [0, 1]."""
    difference = reconstruction.float() - video.float()
    return l1 * difference.abs().mean() + l2 * difference.square().mean()


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], kind: str) -> Tensor:
    """Hinge (arXiv 1705.02894) or non-saturating (arXiv 1406.2661) loss of the critics, mean over critics."""
    if kind == "hinge":
        terms = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake)]
    else:
        terms = [F.softplus(-r.float()).mean() + F.softplus(f.float()).mean() for r, f in zip(real, fake)]
    return torch.stack(terms).mean()


def adversarial_loss(fake: Sequence[Tensor], kind: str) -> Tensor:
    """The autoencoder's side of `discriminator_loss`."""
    if kind == "hinge":
        return torch.stack([-f.float().mean() for f in fake]).mean()
    return torch.stack([F.softplus(-f.float()).mean() for f in fake]).mean()


def lecam_loss(real: Sequence[Tensor], fake: Sequence[Tensor], real_average: Tensor, fake_average: Tensor) -> Tensor:
    """LeCAM regulariser (arXiv 2104.03310): keeps each logit of one side near the other side's moving average."""
    return torch.stack([F.relu(r.float() - fake_average).square().mean()
                        + F.relu(real_average - f.float()).square().mean() for r, f in zip(real, fake)]).mean()


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """Mean over patches, clips and critics."""
    return torch.stack([x.float().mean() for x in logits]).mean()


def feature_matching_loss(real_features: Sequence[Tensor], fake_features: Sequence[Tensor]) -> Tensor:
    """Mean L1 distance between the critics' features of real (detached) and fake (arXiv 1711.11585)."""
    return torch.stack([F.l1_loss(f.float(), r.detach().float())
                        for r, f in zip(real_features, fake_features)]).mean()


def gradient_penalty(discriminator: Discriminator, video: Tensor) -> Tensor:
    """R1 (arXiv 1801.04406): mean over clips of the squared gradient norm of the logits at real video in [0, 1]. A
    weight w is the paper's gamma = 8 w, which halves it and takes pixels in [-1, 1]."""
    video = video.detach().requires_grad_(True)
    logits, _ = discriminator(video)
    total = torch.stack([x.float().mean(1).sum() for x in logits]).sum() / len(logits)
    gradient, = torch.autograd.grad(total, video, create_graph=True)
    return gradient.float().square().sum((1, 2, 3, 4)).mean()


def adversarial_ramp(step: int, start_step: int, warmup_steps: int) -> float:
    """Weight in [0, 1] of the adversarial terms: 0 before `start_step`, then linear over `warmup_steps`."""
    if step < start_step:
        return 0.0
    return min(1.0, (step - start_step + 1) / max(1, warmup_steps))


def even_use_loss(latents: Tensor) -> Tensor:
    """Distance of latents (B, d, t, h, w) from zero mean, unit variance and no correlation over a batch.

    FSQ's levels are then used about evenly: 16 to 24% each of five. Without it a channel may saturate, where tanh
    passes no gradient back: one of five channels had one level left in 99% of the positions after 1,000 steps.
    The moments are VICReg's (arXiv 2105.04906).
    """
    values = latents.float().movedim(1, 0).flatten(1)                              # (d, n)
    mean = values.mean(1, keepdim=True)
    covariance = (values - mean) @ (values - mean).T / values.shape[1]
    spread = covariance.diagonal()
    others = covariance - torch.diag(spread)
    return (mean.square().sum() + (spread.clamp_min(1e-8).sqrt() - 1).square().sum()
            + others.square().sum()) / len(values)
