"""Building blocks of the causal 3D-conv autoencoder (MAGVIT-v2, arXiv 2310.05737).

A frame never sees a later one: convolutions pad time in front only and norms run per frame.
Legend: B batch, C channels, T H W size of a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def laid_out(x: Tensor) -> Tensor:
    """`x` as a convolution reads it: in bfloat16 on a CPU channels last, which takes half the time (AMX); norms, slices
    and joined parts lose it. Layouts differ in the order of sums, so float32 keeps that of the official tokens."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


class CausalConv3d(nn.Module):
    """3x3x3 convolution with replicate padding: 1 on each side of H and W, 2 in front of T."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        t, h, w = stride
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=(t, h, w))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', ceil(T / st), ceil(H / sh), ceil(W / sw))."""
        if x.shape[2] == 1:
            return self._single_frame(x)
        return self.conv(laid_out(F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")))

    def _single_frame(self, x: Tensor) -> Tensor:
        """All three time taps see the same frame, so their sum is a 2D kernel: a third of the work for images."""
        x = F.pad(x.squeeze(2), (1, 1, 1, 1), mode="replicate")      # (B, C, H + 2, W + 2)
        return F.conv2d(x, self.conv.weight.sum(2), self.conv.bias, self.conv.stride[1:]).unsqueeze(2)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm over each frame by itself, so that statistics never reach into the future.

    32 groups as in the official weights; fewer for widths under 128, to keep 4 channels in a group.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(min(32, channels // 4), channels)

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=x.shape[0])


class Swish(nn.Module):
    """x * sigmoid(beta * x) with a learned beta per channel (arXiv 1710.05941)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class ResidualUnit(nn.Module):
    """norm, Swish, conv, norm, Swish, conv plus the input (through a 1x1x1 conv where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FrameGroupNorm(in_channels), Swish(in_channels), CausalConv3d(in_channels, out_channels),
            FrameGroupNorm(out_channels), Swish(out_channels), CausalConv3d(out_channels, out_channels))
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


class DepthToSpaceUpsample(nn.Module):
    """Causal conv to prod(stride) times the channels, which become time and space.

    Channel order is (time, height, width, channel), channel fastest. After a time upsample the
    first frame is dropped, which undoes the causal downsampling of 1 + 2k frames to 1 + k.
    """

    def __init__(self, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        t, h, w = self.stride
        self.conv = CausalConv3d(channels, channels * t * h * w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spread(x)
        return x[:, :, 1:] if self.stride[0] == 2 else x

    def spread(self, x: Tensor) -> Tensor:
        """All frames, the one that `forward` drops included."""
        return channels_to_space(self.conv(x), self.stride)


def channels_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, st*sh*sw*C, T, H, W) -> (B, C, T*st, H*sh, W*sw), in the memory format of `x`."""
    sizes = dict(zip(("st", "sh", "sw"), stride))
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        last = rearrange(x, "b (st sh sw c) t h w -> b (t st) (h sh) (w sw) c", **sizes)
        return last.movedim(-1, 1)
    return rearrange(x, "b (st sh sw c) t h w -> b c (t st) (h sh) (w sw)", **sizes)
