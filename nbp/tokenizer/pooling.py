"""Weights that make a new tokenizer keep the mean colour of each latent cell, and the slopes of its brightness.

A random tokenizer first has to learn what a colour is and settles for a few codes; from here every step buys
detail. FSQ channels 0..2 hold brightness and two colour differences, 3..5 the slope of brightness along width,
height and time: the lowest terms of a cosine transform, to which the levels go furthest. The first channels of
every layer carry them as plain sums and nothing else; all other weights stay random.
The norm of each head would erase brightness, so its groups also carry constants +K, -K, ... that outweigh the
signals: then it scales and shifts by nearly the same amount everywhere, and the head undoes that.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nbp.tokenizer.layers import CausalConv3d, DepthToSpaceUpsample, FrameGroupNorm, ResidualUnit, Swish
from nbp.tokenizer.model import Decoder, Encoder, Tokenizer

CONSTANT = 3.0     # K; colours lie in [-0.5, 0.5]
COLOURS = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]))  # orthonormal, of RGB
# What a code of 1 stands for. Fitted once, with GAIN, to the least squared error over clips of Procgen.
SPREAD = torch.tensor([0.9, 0.35, 0.2, 0.5, 0.45, 0.45])
GAIN = 1.2         # latent of a signal as large as its spread, before the tanh of FSQ
AXES = (2, 1, 0)   # of a kernel (t, h, w) and of the strides: slopes are ordered width, height, time
EARLY = 6          # channels 0..2 are red, green and blue, 3..5 the slopes


@torch.no_grad()
def start_as_pooling(tokenizer: Tokenizer) -> None:
    """Overwrite the signal-carrying weights of a `Tokenizer` in place.

    Args:
        tokenizer: `nbp.tokenizer.model.Tokenizer` with three or more FSQ channels; those beyond six stay random.

    Raises:
        ValueError: fewer than three FSQ channels, or widths without room for the signals.
    """
    config = tokenizer.config
    num_signals = min(len(config.fsq_levels), 6)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    inner = _Head(cast(FrameGroupNorm, encoder.head[0]), num_signals)
    outer = _Head(cast(FrameGroupNorm, decoder.head[0]), 3)
    room = [min(config.widths), *config.widths[-2:]]
    need = [max(EARLY, outer.size), inner.size, inner.size]
    if num_signals < 3 or any(a < b for a, b in zip(room, need)):
        raise ValueError(f"pooling_start needs at least 3 fsq_levels, widths of at least {need[0]} and the last two of "
                         f"at least {need[1]}; got {list(config.fsq_levels)} and {list(config.widths)}")
    _start_encoder(encoder, inner, num_signals)
    _start_decoder(decoder, outer, num_signals)


def _start_encoder(encoder: Encoder, head: "_Head", num_signals: int) -> None:
    _clear(encoder.conv_in.conv, EARLY)
    for channel in range(3):
        encoder.conv_in.conv.weight[channel, channel] = centre(encoder.conv_in.conv)
    _bias(encoder.conv_in.conv)[:3] = -0.5
    downsamples = [cast(CausalConv3d, layer) for layer in encoder.downsamples]
    last = len(downsamples) - 1
    for index, (stage, layer) in enumerate(zip(encoder.stages, downsamples)):
        _pass_through(stage, EARLY)
        conv, targets = layer.conv, head.signals if index == last else range(EARLY)
        _clear(conv, head.size if index == last else EARLY)
        for source, target in zip(range(EARLY), targets):
            conv.weight[target, source] = average(conv)
            if source >= 3 and conv.stride[AXES[source - 3]] == 2:
                conv.weight[target, source] /= 2
                conv.weight[target, :3] = difference(conv, AXES[source - 3]) * 3 ** -0.5
    head.add_constants(downsamples[-1].conv)
    _pass_through(encoder.stages[-1], head.size)
    head.pass_norm(cast(Swish, encoder.head[1]))
    rows = torch.zeros(num_signals, num_signals)
    rows[:3, :3] = COLOURS
    for slope in range(num_signals - 3):
        rows[3 + slope, 3 + slope] = _slope_scale(downsamples, AXES[slope])
    head.read(cast(nn.Conv3d, encoder.head[-1]), rows * (GAIN / SPREAD[:num_signals, None]))


def _start_decoder(decoder: Decoder, head: "_Head", num_signals: int) -> None:
    conv = decoder.conv_in.conv
    _clear(conv, EARLY)
    conv.weight[:3, :3] = (COLOURS * SPREAD[:3, None]).T[..., None, None, None] * centre(conv)
    for slope in range(3, num_signals):
        conv.weight[slope, slope] = SPREAD[slope] * centre(conv)
    upsamples = [cast(DepthToSpaceUpsample, layer) for layer in decoder.upsamples]
    last = len(upsamples) - 1
    for index, (stage, layer) in enumerate(zip(decoder.stages, upsamples)):
        _pass_through(stage, EARLY)
        conv, targets = layer.conv.conv, head.signals if index == last else range(EARLY)
        for first_row, place in zip(range(0, conv.out_channels, conv.in_channels), _places(layer.stride)):
            _clear(conv, head.size if index == last else EARLY, first_row)
            for source, target in zip(range(EARLY), targets):
                halve = source >= 3 and layer.stride[AXES[source - 3]] == 2
                conv.weight[first_row + target, source] = centre(conv) * (0.5 if halve else 1)
            for target in targets[:3]:
                for slope, axis in enumerate(AXES):
                    conv.weight[first_row + target, 3 + slope] = centre(conv) * (place[axis] / 2 * 3 ** -0.5)
            if index == last:
                head.add_constants(conv, first_row)
    _pass_through(decoder.stages[-1], head.size)
    head.pass_norm(cast(Swish, decoder.head[1]))
    head.read(cast(CausalConv3d, decoder.head[-1]).conv, torch.eye(3), bias=0.5)


def centre(conv: nn.Conv3d) -> Tensor:
    """Kernel (t, h, w) that passes the pixel on: the last tap in time, the middle one in space."""
    kernel = torch.zeros(conv.kernel_size)
    kernel[-1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2] = 1
    return kernel


def average(conv: nn.Conv3d) -> Tensor:
    """Kernel (t, h, w) that averages the inputs that a strided convolution reduces to one."""
    return _separable(conv, [0, 0.5, 0.5])


def difference(conv: nn.Conv3d, axis: int) -> Tensor:
    """Like `average`, but along one axis half of how far the second input lies above the first."""
    return _separable(conv, [0, 0.5, 0.5], {axis: [0, -0.5, 0.5]})


def _separable(conv: nn.Conv3d, strided: list[float], special: Mapping[int, list[float]] | None = None) -> Tensor:
    kernel = torch.ones(())
    for axis, stride in enumerate(conv.stride):
        taps = strided if stride == 2 else [0, 0, 1.0] if axis == 0 else [0, 1.0, 0]     # else as `centre`
        kernel = kernel[..., None] * torch.tensor((special or {}).get(axis, taps))
    return kernel


def _slope_scale(downsamples: Sequence[CausalConv3d], axis: int) -> float:
    """Turns the carried sum of differences into the height of the best fitting ramp +-1/2 +-1/4 +-1/8 ..."""
    times = sum(layer.conv.stride[axis] == 2 for layer in downsamples)
    return 0.5 / sum(4.0 ** -(i + 1) for i in range(times)) if times else 0.0


def _places(stride: Sequence[int]) -> list[tuple[int, int, int]]:
    """Where each part of a depth-to-space upsample lies in its cell: -1 or 1 along each axis, 0 if not split."""
    sides = [(-1, 1) if step == 2 else (0,) for step in stride]
    return [(t, h, w) for t in sides[0] for h in sides[1] for w in sides[2]]


def _clear(conv: nn.Conv3d, size: int, first_row: int = 0) -> None:
    conv.weight[first_row:first_row + size] = 0
    _bias(conv)[first_row:first_row + size] = 0


def _bias(conv: nn.Conv3d) -> Tensor:
    return cast(Tensor, conv.bias)


def _pass_through(stage: nn.Module, size: int) -> None:
    """The residual units of a stage leave the first `size` channels as they are."""
    for unit in cast(list[ResidualUnit], stage):
        _clear(cast(CausalConv3d, unit.layers[-1]).conv, size)
        if isinstance(unit.shortcut, nn.Conv3d):
            _clear(unit.shortcut, size)
            for channel in range(size):
                unit.shortcut.weight[channel, channel] = 1


class _Head:
    """Where the signals lie in front of a norm: two in each group of g channels, then constants."""

    def __init__(self, norm: FrameGroupNorm, num_signals: int) -> None:
        self.norm, self.group = norm, norm.num_channels // norm.num_groups
        starts = range(0, 3 * self.group, self.group)
        self.signals = [0, 1, self.group, self.group + 1, 2 * self.group, 2 * self.group + 1][:num_signals]
        self.size = (self.signals[-1] // self.group + 1) * self.group
        self.constants = {start + c: CONSTANT * (-1) ** c for start in starts[:self.size // self.group]
                          for c in range(2, self.group)}

    def add_constants(self, conv: nn.Conv3d, first_row: int = 0) -> None:
        """Constants by way of the bias."""
        for channel, value in self.constants.items():
            _bias(conv)[first_row + channel] = value

    def pass_norm(self, swish: Swish) -> None:
        """A group deviates as its constants do, by K * sqrt((g - 2) / g); Swish with beta = 0 is x / 2."""
        self.norm.weight[:self.size] = 2 * CONSTANT * ((self.group - 2) / self.group) ** 0.5
        swish.beta[:, :self.size] = 0

    def read(self, conv: nn.Conv3d, rows: Tensor, bias: float = 0.0) -> None:
        """Output i: signals weighted by rows[i], less the mean of their groups' constants, which undoes the shift."""
        conv.weight[:len(rows)] = 0
        _bias(conv)[:len(rows)] = bias
        for row, weights in enumerate(rows):
            for channel, weight in zip(self.signals, weights):
                conv.weight[row, channel] += weight * centre(conv)
                others = [c for c in self.constants if c // self.group == channel // self.group]
                for other in others:
                    conv.weight[row, other] -= weight / len(others) * centre(conv)
