"""Codes that share levels learn from one another: rows of the token embedding and of the head are sums.

An FSQ code is a digit for each channel of the latent. Each row of a table is its own part plus a part of each of its
digits, which is trained by every code that has this digit: a codebook of thousands is learnt in a few hundred steps.
A parametrization (torch.nn.utils.parametrize): wherever the weight is read, it is the sum.
Legend: V codes, S sum of the levels, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SharedByLevel(nn.Module):
    """Weight (rows, D) -> the same with the parts of the digits added to the rows of the codes.

    Args:
        levels: FSQ levels of the tokenizer, the first channel fastest.
        first: row of code 0; rows before it and behind the codes stay as they are.
        rows, width: of the weight.
    """

    digits: Tensor

    def __init__(self, levels: Sequence[int], first: int, rows: int, width: int) -> None:
        super().__init__()
        digits, code = torch.zeros(rows, sum(levels)), torch.arange(math.prod(levels))   # (rows, S), (V,)
        start = 0
        for count in levels:
            digits[first + torch.arange(len(code)), start + code % count] = 1
            start, code = start + count, code // count
        self.register_buffer("digits", digits, persistent=False)
        self.parts = nn.Parameter(torch.zeros(sum(levels), width))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.digits.to(weight.dtype) @ self.parts


def share_levels(layer: nn.Embedding | nn.Linear, levels: Sequence[int], first: int) -> None:
    """Make the weight of an embedding or a linear layer such a sum, equal to what it was."""
    rows, width = layer.weight.shape
    # Unsafe: without trying it out, which would fail for weights on the meta device beside real buffers.
    parametrize.register_parametrization(layer, "weight", SharedByLevel(levels, first, rows, width), unsafe=True)
