"""Finite scalar quantization (Mentzer et al., arXiv 2309.15505): latents -> codes and indices.

Departs from the paper as the official NBP weights do: the shift of even levels is
tan(offset / half) instead of atanh. All maths is float32 whatever the autocast state or the
module's dtype: in bfloat16 only 2% of the 64,000 indices come out right.
Legend: B batch, d = len(levels), ... the latent grid.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS = 1e-3


class FSQ(nn.Module):
    """Rounds each of d latent channels to one of `levels[i]` values in [-1, 1]; has no parameters.

    Args:
        levels: number of values per channel. index = sum(digit[i] * prod(levels[:i])): first channel fastest.
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codes = math.prod(levels)
        # Integer buffers, so that `module.bfloat16()` leaves them exact; the float constants derive from them.
        self.register_buffer("_levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("_basis", torch.cumprod(torch.tensor([1, *levels[:-1]]), 0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._levels.device

    def bound(self, latents: Tensor) -> Tensor:
        """Squash latents (B, d, ...) into the open interval that rounds to `levels` values; float32."""
        levels = self._channel_shape(self._levels, latents).float()      # whatever torch's default dtype is
        half = (levels - 1) * (1 - EPS) / 2
        offset = 0.5 * (levels % 2 == 0).float()
        return torch.tanh(latents.float() + torch.tan(offset / half)) * half - offset

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize with a straight-through gradient.

        Args:
            latents: (B, d, ...) any float dtype.

        Returns:
            codes: (B, d, ...) float32 in [-1, 1]; indices: (B, ...) int32 in [0, num_codes).
        """
        bounded = self.bound(latents)
        half_width = self._channel_shape(self._levels // 2, latents)
        rounded = bounded.detach().round()                       # (B, d, ...)
        codes = (bounded + (rounded - bounded.detach())) / half_width
        digits = rounded.long() + half_width
        return codes, (digits * self._channel_shape(self._basis, latents)).sum(1).int()

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Codes (B, d, ...) float32 of indices (B, ...), any integer dtype.

        Raises:
            ValueError: an index outside [0, num_codes).
        """
        if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < self.num_codes):
            raise ValueError(f"indices must lie in [0, {self.num_codes}), got "
                             f"[{int(indices.min())}, {int(indices.max())}]")
        indices = indices.long().unsqueeze(1)                    # (B, 1, ...)
        levels = self._channel_shape(self._levels, indices)
        digits = indices // self._channel_shape(self._basis, indices) % levels      # (B, d, ...)
        return (digits - levels // 2).float() / (levels // 2)

    @staticmethod
    def _channel_shape(values: Tensor, like: Tensor) -> Tensor:
        return values.view(-1, *[1] * (like.ndim - 2))
