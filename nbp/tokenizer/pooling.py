"""Weights that make a new tokenizer average-pool the video, quantize the colours and repeat them back.

A random tokenizer first has to learn what a colour is and settles for a few codes; from here every step buys
detail. The first channels of every layer carry the three colours and nothing else; all other weights stay random.
The norm of each head would erase brightness, so its two groups also carry constants +K, -K, ... that outweigh the
colours: then it scales and shifts by nearly the same amount everywhere, and the head undoes that.
"""

import torch

from nbp.tokenizer.layers import ResidualUnit

CONSTANT = 1.0     # K; colours lie in [-0.5, 0.5]
GAIN = 3.0         # colour -> latent, before the tanh of FSQ
COLOUR = 0.45      # code in [-1, 1] -> colour


@torch.no_grad()
def start_as_pooling(tokenizer):
    """Overwrite the colour-carrying weights of a `Tokenizer` in place.

    Args:
        tokenizer: `nbp.tokenizer.model.Tokenizer`.

    Raises:
        ValueError: fewer than three FSQ channels, a width too small for the colours, or no strides.
    """
    config = tokenizer.config
    if len(config.fsq_levels) < 3 or min(config.widths) < 8 or not config.strides:
        raise ValueError("pooling_start needs at least 3 fsq_levels, widths of at least 8 and strides, got "
                         f"{list(config.fsq_levels)}, {list(config.widths)} and {len(config.strides)} strides")
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    norm = encoder.head[0]
    carry = _Carry(norm.num_channels // norm.num_groups)
    carry.hold(encoder.conv_in.conv, centre(encoder.conv_in.conv), bias=-0.5)
    carry.hold_units(encoder.stages)
    for layer in encoder.downsamples:
        carry.hold(layer.conv, average(layer.conv))
    carry.add_constants(encoder.downsamples[-1].conv)
    carry.pass_norm(*encoder.head[:2])
    carry.read(encoder.head[-1], centre(encoder.head[-1]) * GAIN)

    norm = decoder.head[0]
    carry = _Carry(norm.num_channels // norm.num_groups)
    carry.hold(decoder.conv_in.conv, centre(decoder.conv_in.conv) * COLOUR)
    carry.hold_units(decoder.stages)
    for layer in decoder.upsamples:
        for part in range(layer.conv.conv.out_channels // layer.conv.conv.in_channels):
            carry.hold(layer.conv.conv, centre(layer.conv.conv), first_row=part * layer.conv.conv.in_channels)
            if layer is decoder.upsamples[-1]:
                carry.add_constants(layer.conv.conv, first_row=part * layer.conv.conv.in_channels)
    carry.pass_norm(*decoder.head[:2])
    carry.read(decoder.head[-1].conv, centre(decoder.head[-1].conv), bias=0.5)


def centre(conv):
    """Kernel (t, h, w) that passes the pixel on: the last tap in time, the middle one in space."""
    kernel = torch.zeros(conv.kernel_size)
    kernel[-1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2] = 1
    return kernel


def average(conv):
    """Kernel (t, h, w) that averages the inputs that a strided convolution reduces to one."""
    kernel = torch.ones(())
    for axis, stride in enumerate(conv.stride):
        taps = torch.tensor([0, 0.5, 0.5] if stride == 2 else [0, 0, 1.0] if axis == 0 else [0, 1.0, 0])
        kernel = kernel[..., None] * taps
    return kernel


class _Carry:
    """The channels [0, 2g) that carry three colours through one half of the model; g is the size of a norm group."""

    def __init__(self, group):
        self.size = 2 * group
        self.signals = (0, 1, group)
        constants = [c for c in range(self.size) if c % group >= 2]
        self.constants = {c: CONSTANT if number % 2 == 0 else -CONSTANT for number, c in enumerate(constants)}
        self.group = group

    def hold(self, conv, kernel, bias=0.0, first_row=0):
        """Let rows of the block take their colour through `kernel`: from the block before, or the first 3 channels."""
        rows = slice(first_row, first_row + self.size)
        conv.weight[rows] = 0
        conv.bias[rows] = 0
        sources = self.signals if conv.in_channels >= self.size else (0, 1, 2)
        for target, source in zip(self.signals, sources):
            conv.weight[first_row + target, source] = kernel
            conv.bias[first_row + target] = bias

    def hold_units(self, stages):
        """Residual units add nothing to the block at first."""
        for unit in stages.modules():
            if isinstance(unit, ResidualUnit):
                unit.layers[-1].conv.weight[:self.size] = 0
                unit.layers[-1].conv.bias[:self.size] = 0
                if not isinstance(unit.shortcut, torch.nn.Identity):
                    self.hold(unit.shortcut, centre(unit.shortcut))
                    for channel in self.constants:
                        unit.shortcut.weight[channel, channel] = 1

    def add_constants(self, conv, first_row=0):
        """Constants by way of the bias."""
        for channel, value in self.constants.items():
            conv.bias[first_row + channel] = value

    def pass_norm(self, norm, swish):
        """A group deviates as its constants do, by K * sqrt((g - 2) / g); Swish with beta = 0 is x / 2."""
        norm.weight[:self.size] = 2 * CONSTANT * ((self.group - 2) / self.group) ** 0.5
        swish.beta[:, :self.size] = 0

    def read(self, conv, kernel, bias=0.0):
        """Rows 0..2 of the output: a colour less the mean of its group's constants, which undoes the norm's shift."""
        conv.weight[:3] = 0
        conv.bias[:3] = bias
        for row, channel in enumerate(self.signals):
            conv.weight[row, channel] = kernel
            others = [c for c in self.constants if c // self.group == channel // self.group]
            for other in others:
                conv.weight[row, other] = -kernel / len(others)
