"""Muon for matrices and convolution kernels, AdamW for everything else, as one torch optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix along the nearest orthogonal
matrix to its momentum. Kernels (O, I, ...) are taken as matrices (O, I * ...). The step is scaled by
sqrt(max(1, O / (I * ...))). All ranks of DDP hold the same gradients and compute the same step.
"""

import math
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nbp.system.processor import multiplies_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)   # quintic iteration of the source: singular values end in about [0.7, 1.2]
STEPS = 5
STACKED = 2**24   # numbers that are orthogonalised at once: many small matrices keep a device busier than one by one


class Muon(torch.optim.Optimizer):
    """Muon, in Nesterov's form, in the parameter groups with `"muon": True`, AdamW with `betas` in the others; both
    decay weights decoupled. A step before which `found_inf`, a float scalar on the device, was set to 1 leaves weights
    and state as they are, as with a fused `torch.optim.AdamW`. ValueError: a vector or scalar in a Muon group."""

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.99),
                 momentum: float = 0.95, weight_decay: float = 0.0, eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": 1e-3, "muon": False, "betas": betas, "momentum": momentum,
                                  "weight_decay": weight_decay, "eps": eps})
        for group in self.param_groups:
            if group["muon"] and (flat := [tuple(p.shape) for p in group["params"] if p.ndim < 2]):
                raise ValueError(f"Muon takes matrices and convolution kernels, got a parameter of shape {flat[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without a gradient stay where they are, and so does their state."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_step(group)
            else:
                self._adamw_step(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer, counters of steps included, which a fused step reads on the parameter's device."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(p.device)

    def _muon_step(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for shape, same in groupby(sorted(params, key=_matrix_shape), _matrix_shape):
            alike, count = list(same), max(1, STACKED // math.prod(shape))
            for some in (alike[first:first + count] for first in range(0, len(alike), count)):
                moves = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in some]))
                for p, move in zip(some, moves):
                    self._move(p, move, group)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum after one more gradient, as a matrix (O, I * ...)."""
        state, skip = self.state[p], self.found_inf
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer, grad = state["momentum_buffer"], p.grad
        assert grad is not None
        grad = grad if skip is None else torch.where(skip == 1, buffer, grad)   # skipped: the momentum towards itself
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum).flatten(1)

    def _move(self, p: Tensor, move: Tensor, group: dict[str, Any]) -> None:
        kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
        if self.found_inf is not None:
            move, kept = move * (1 - self.found_inf), torch.where(self.found_inf == 1, 1.0, kept)
        p.mul_(kept)
        p.add_(move.view(p.shape), alpha=-group["lr"] * max(1.0, move.shape[0] / move.shape[1]) ** 0.5)

    def _adamw_step(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p),
                                     exp_avg_sq=torch.zeros_like(p))
        states = [self.state[p] for p in params]
        if params:
            adamw(params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                  [], [s["step"] for s in states], fused=True, amsgrad=False, beta1=group["betas"][0],
                  beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                  maximize=False, found_inf=self.found_inf)


def _matrix_shape(p: Tensor) -> tuple[int, int]:
    return p.shape[0], math.prod(p.shape[1:])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Of each of (N, m, n) the nearest (semi-)orthogonal matrix, roughly, by five Newton-Schulz steps; in bfloat16
    where it is fast: on a CPU that emulates it this took three quarters of a generator's training step (AVX2)."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    x = x.bfloat16() if multiplies_bfloat16(matrices.device.type) else x.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def muon_groups(module: nn.Module, excluded: Iterable[nn.Module], lr: float, muon_lr: float,
                weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two parameter groups of a model: weights of its linear and convolution layers for Muon, with weight decay, the
    rest and those of `excluded` (what reads the input and what writes the output) for AdamW, without."""
    skip = {id(layer) for layer in excluded}
    matrices = {id(layer.weight) for layer in module.modules() if id(layer) not in skip
                and isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [{"params": [p for p in parameters if id(p) in matrices], "lr": muon_lr, "muon": True,
             "weight_decay": weight_decay},
            {"params": [p for p in parameters if id(p) not in matrices], "lr": lr, "muon": False, "weight_decay": 0.0}]
