"""Rotary positions (Su et al., arXiv 2104.09864) in the three axes of a clip.

A position of the stream has the place (t, h, w) of the token that it predicts; condition tokens are not rotated. A
third of each head's pairs of channels turns with each axis.
Legend: S positions of [condition | stream], H heads, d channels of a head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nbp.generator.sequence import Layout, to_steps

BASE = 100.0   # slowest turn: about the side of a latent grid


def places(layout: Layout, grid: Sequence[int], block_shape: Sequence[int], num_positions: int) -> Tensor:
    """Places float32 (S, 3) of the first positions; clips may be longer than `grid`, but no wider."""
    frames = math.ceil(num_positions / (grid[1] * grid[2])) + block_shape[0]
    frames -= frames % block_shape[0]
    axes = torch.meshgrid(*(torch.arange(size) for size in (frames, *grid[1:])), indexing="ij")
    steps = torch.stack([to_steps(axis[None], block_shape)[0] for axis in axes], 1)[layout.first_predicted:]
    return torch.cat([torch.zeros(layout.condition_len, 3, dtype=torch.float32), steps.float()])[:num_positions]


def rotations(where: Tensor, size: int) -> Tensor:
    """Cosines and sines float32 (2, S, d/2) for places (S, 3) and heads of `size` channels."""
    pairs = size // 2
    share = [pairs // 3 + (axis < pairs % 3) for axis in range(3)]
    angles = [where[:, axis, None] * BASE ** -(torch.arange(count, dtype=torch.float32) / max(1, count))
              for axis, count in enumerate(share)]
    angle = torch.cat(angles, 1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn queries or keys (B, H, n, d) by `turn` (2, n, d/2); the pairs are (i, i + d/2)."""
    cos, sin = turn.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
