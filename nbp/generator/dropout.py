"""Dropout whose random numbers do not hold up a CPU: 16 bits for each number, where PyTorch draws one number each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.generator.native import library

CHOICES = 2 ** 16


class Dropout(nn.Dropout):
    """`nn.Dropout`, on CPUs in half the time, with p as the nearest multiple of 1/65536."""

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any shape -> the same, each zero with odds p and else divided by 1 - p."""
        dropped = round(self.p * CHOICES)
        if not self.training or x.device.type != "cpu" or library.traced() or not 0 < dropped < CHOICES:
            return F.dropout(x, self.p, self.training)
        # Whole 64-bit numbers are drawn, of which each is four of 16 bits.
        whole = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-2 ** 63, None)
        kept = whole.view(torch.int16)[:x.numel()].view(x.shape) >= dropped - CHOICES // 2
        return x * kept.to(x.dtype).mul_(CHOICES / (CHOICES - dropped))
