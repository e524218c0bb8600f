"""The layer from hidden states to logits, and the loss of many positions without all of their logits at once.

Legend: B batch, P positions, D width, V ids.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.generator.cross_entropy import cross_entropy, in_cpp

MAX_LOGITS = 3 * 2 ** 24     # that exist at a time: 192 MiB in float32


class Head(nn.Linear):
    """Linear layer without bias that also gives the loss, as a call of the module: so ZeRO-3 gathers its weights."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width, size, bias=False)

    def forward(self, hidden: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits (B, P, V) of hidden states (B, P, D); with target ids (B, P) their mean negative log-likelihood, which
        can be differentiated once where positions are many, `retain_graph` or not."""
        if target is None:
            return super().forward(hidden)
        if target.shape != hidden.shape[:-1]:
            raise ValueError(f"targets must be {tuple(hidden.shape[:-1])}, one a position, got {tuple(target.shape)}")
        rows = self.positions_at_a_time(target.numel())
        if target.numel() <= rows and not in_cpp(hidden, target.numel() * self.out_features):
            return F.cross_entropy(super().forward(hidden).float().flatten(0, 1), target.flatten())
        dtype = F.linear(hidden[:1, :1], self.weight[:1]).dtype       # what autocast makes of it
        weight = self.weight if torch.is_grad_enabled() else self.weight.detach()      # else its gradient is made
        loss: Tensor = _ChunkedLoss.apply(hidden.flatten(0, 1).to(dtype), weight, target.flatten(), rows, dtype)
        return loss

    def positions_at_a_time(self, count: int) -> int:
        """Of how many of `count` positions logits exist at once in `forward` with targets: parts of about one size."""
        parts = max(1, math.ceil(count / max(1, MAX_LOGITS // self.out_features)))
        return math.ceil(count / parts)


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy of hidden @ weight.T whose gradients are made with it, chunk by chunk: nothing is computed twice.

    As `F.cross_entropy`, up to the order of sums over chunks.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, rows: int,  # noqa: ANN401 - torch's own
                dtype: torch.dtype) -> Tensor:
        low, count = weight.to(dtype), len(hidden)
        losses, hidden_grads, weight_grad = [], [], None
        for part, ids in zip(hidden.split(rows), target.split(rows)):                 # (rows, D), (rows,)
            loss, grad = cross_entropy(part @ low.T, ids, 1 / count if any(ctx.needs_input_grad) else None)
            losses.append(loss)
            if grad is None:
                continue
            hidden_grads.append(grad @ low)                                           # of (rows, V)
            if not ctx.needs_input_grad[1]:         # the head is frozen
                continue
            if weight_grad is None:
                weight_grad = (grad.T @ part).to(weight.dtype)
            elif dtype == weight.dtype:
                weight_grad.addmm_(grad.T, part)
            else:
                weight_grad += grad.T @ part
        ctx.grads = (torch.cat(hidden_grads), weight_grad) if hidden_grads else None
        return torch.stack(losses).sum() / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if ctx.grads is None:
            raise RuntimeError("the loss of many positions can be differentiated once, also with retain_graph; call "
                               "the model again")
        # Given away instead of saved: of the head's gradient, the largest, there is never a second one.
        (hidden_grad, weight_grad), ctx.grads = ctx.grads, None
        weight_grad = None if weight_grad is None else weight_grad.mul_(grads[0])
        return hidden_grad.mul_(grads[0].to(hidden_grad.dtype)), weight_grad, None, None, None
