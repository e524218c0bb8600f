"""Residual units that cost less than the published ones: LayerNorm, SiLU, padding inside the convolution.

Causal as those: norms run over the channels of one position, time is padded in front only, with the first frame.
Legend: B batch, C channels, t h w size of a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.tokenizer.layers import channels_to_space, laid_out


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of one position: causal, no statistics to keep.

    PyTorch's `rms_norm` takes 4.5 times as long on a CPU (14.9 against 3.3 ms forward and backward for 10,240 x 128
    bfloat16, AVX-512 with AMX), which is half of a 3x3x3 convolution of that width.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ZeroPaddedConv3d(nn.Module):
    """Causal convolution that pads with zeros at the sides and with the first frame in front.

    Args:
        kernel: (t, h, w), each odd; t - 1 copies of the first frame go in front.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int],
                 stride: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        t, h, w = kernel
        self.conv = nn.Conv3d(in_channels, out_channels, (t, h, w), (stride[0], stride[1], stride[2]),
                              (0, h // 2, w // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, C', ceil(t / st), ceil(h / sh), ceil(w / sw))."""
        front = self.conv.kernel_size[0] - 1
        if front and x.shape[2] == 1:
            return self._single_frame(x)
        if front:
            # An expanded frame would lose channels-last and take ten times as long.
            x = torch.cat([x[:, :, :1]] * front + [x], 2)
        return self.conv(laid_out(x))

    def _single_frame(self, x: Tensor) -> Tensor:
        """All taps in time see the same frame: their sum does."""
        conv = self.conv
        return F.conv2d(x.squeeze(2), conv.weight.sum(2), conv.bias, conv.stride[1:], conv.padding[1:]).unsqueeze(2)


class CheapUnit(nn.Module):
    """Residual unit: norm, convolution within a frame, SiLU, convolution over time; a width change goes 1x1x1.

    A 1x3x3 and a 3x1x1 convolution take 12 / 54 of the work of two 3x3x3 ones.
    """

    def __init__(self, in_channels: int, out_channels: int, split: bool) -> None:
        super().__init__()
        space, time = ((1, 3, 3), (3, 1, 1)) if split else ((3, 3, 3), (3, 3, 3))
        self.layers = nn.Sequential(ChannelLayerNorm(in_channels), ZeroPaddedConv3d(in_channels, out_channels, space),
                                    nn.SiLU(), ZeroPaddedConv3d(out_channels, out_channels, time))
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


class PointwiseUpsample(nn.Module):
    """A 1x1x1 convolution whose channels become time and space; drops the first frame after a step in time.

    Args:
        in_channels, out_channels: before and after.
        stride: (t, h, w), each 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        t, h, w = self.stride
        self.conv = nn.Conv3d(in_channels, out_channels * t * h * w, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, C', 2t - 1 or t, ...)."""
        return self.spread(x)[:, :, self.stride[0] - 1:]

    def spread(self, x: Tensor) -> Tensor:
        """All frames, the one that `forward` drops included."""
        return channels_to_space(self.conv(x), self.stride)
