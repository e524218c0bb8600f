"""Cheap ends of the autoencoder: patches of pixels in space and time instead of full-resolution convolutions.

Most of the work of a small tokenizer lies in layers of few channels over all pixels, which reach a tenth of a
processor's rate. Patches of (4,4,4) pixels become 192 channels and convolutions begin at a 64th of the positions.
The first frame is repeated in front until it fills a patch of its own, so that 1 + pt*k frames become 1 + k latent
frames, an image is one latent frame, and no latent frame sees a later one.
Legend: B batch, C channels, T H W pixels, t h w patches, pt ph pw a patch.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Video (B, C, 1 + pt*k, H, W) -> features (B, D, 1 + k, H/ph, W/pw)."""

    def __init__(self, channels: int, width: int, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.conv = nn.Conv3d(channels * self.patch[0] * self.patch[1] * self.patch[2], width, 1)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch[0]
        return self.spread(torch.cat([x[:, :, :1].expand(-1, -1, t - 1, -1, -1), x], 2))

    def spread(self, x: Tensor) -> Tensor:
        """Features of whole patches, (B, C, pt*k, H, W) -> (B, D, k, H/ph, W/pw)."""
        t, h, w = self.patch
        x = rearrange(x, "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)", pt=t, ph=h, pw=w)
        return self.conv(x.permute(0, 4, 1, 2, 3))           # strides of channels-last, as the convolutions like it


class PatchExpand(nn.Module):
    """Features (B, D, 1 + k, h, w) -> video (B, C, 1 + pt*k, h*ph, w*pw); drops what `PatchEmbed` put in front."""

    def __init__(self, width: int, channels: int, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.conv = nn.Conv3d(width, channels * self.patch[0] * self.patch[1] * self.patch[2], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(x)[:, :, self.patch[0] - 1:]

    def spread(self, x: Tensor) -> Tensor:
        """All frames, those that `forward` drops included."""
        t, h, w = self.patch
        return rearrange(self.conv(x), "b (pt ph pw c) t h w -> b c (t pt) (h ph) (w pw)", pt=t, ph=h, pw=w)
