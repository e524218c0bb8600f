"""Cross-entropy of rows of logits and its gradient at once, on CPUs in C++ (`native/loss.cpp`).

Legend: N rows, V ids.
"""

import ctypes

import torch
from torch import Tensor

from nbp.generator.native import library

MIN_LOGITS = 2 ** 20        # of fewer PyTorch's loss takes as long


def in_cpp(hidden: Tensor, num_logits: int) -> bool:
    """Whether the loss of so many logits of `hidden` is for C++: in training on a CPU where it gains."""
    if not (hidden.requires_grad and hidden.device.type == "cpu" and num_logits >= MIN_LOGITS):
        return False
    return not library.traced() and library.of(torch.float32) is not None


def cross_entropy(logits: Tensor, target: Tensor, share: float | None) -> tuple[Tensor, Tensor | None]:
    """Loss of rows of logits, and its gradient, each computed in float32.

    Args:
        logits: (N, V), which are lost.
        target: true ids, int64 (N,).
        share: of a row in the gradient, above 0; None: no gradient.

    Returns:
        (sum of the rows' negative log-likelihoods in nats, float32 (); gradient of `share` times it, (N, V) of the
        logits' type, or None).

    Raises:
        ValueError: targets of another type or number.
        IndexError: a target that is no id, on a CPU.
    """
    rows, columns = logits.shape
    if target.dtype != torch.int64 or target.shape != (rows,):
        raise ValueError(f"targets must be int64 ({rows},), got {target.dtype} {tuple(target.shape)}")
    if logits.device.type != "cpu" or library.traced():
        return _in_torch(logits, target, share)
    if rows and not 0 <= target.min() <= target.max() < columns:
        raise IndexError(f"targets must be from 0 to {columns - 1}, got {int(target.min())} to {int(target.max())}")
    if (loaded := library.of(logits.dtype)) is None:
        return _in_torch(logits, target, share)
    logits, target, losses = logits.contiguous(), target.contiguous(), torch.empty(rows, dtype=torch.float32)
    loaded.differentiate_loss(ctypes.byref(library.Loss(
        rows, columns, torch.get_num_threads(), logits.data_ptr(), target.data_ptr(), share or 0, losses.data_ptr())))
    return losses.sum(), logits if share is not None else None


def _in_torch(logits: Tensor, target: Tensor, share: float | None) -> tuple[Tensor, Tensor | None]:
    dtype, logits = logits.dtype, logits.float()
    best, true = logits.amax(-1, keepdim=True), logits.gather(-1, target[:, None])
    odds = logits.sub_(best).exp_()                                               # in place of the logits
    total = odds.sum(-1, keepdim=True)                                            # (N, 1)
    loss = (best + total.log() - true).sum()
    if share is None:
        return loss, None
    gradient = odds.mul_(share / total)
    return loss, gradient.scatter_add_(-1, target[:, None], torch.full_like(total, -share)).to(dtype)
