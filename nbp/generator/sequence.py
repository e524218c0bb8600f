"""Where every id and every position of [condition | begin | video] lies, as pure index arithmetic.

The stream is what follows the condition. The output at stream position s predicts the video token that
opens up there; a block of N positions predicts the next N tokens, each the one at its own place:
    plain, begin      begin x N, z0 z1 ...                 output s predicts z(s)
    plain, no begin   z0 z1 ...                            output s predicts z(s+N)
    hybrid            begin, z0 .. z(N-1), 1 .. N-1, zN .. output s predicts z(s)
In a hybrid stream the first N tokens are predicted one by one, then [z(N-1), 1 .. N-1] predicts block zN.
Legend: N block size, L video tokens of a clip, (t, h, w) latent grid.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nbp.config import GeneratorConfig

CONDITION = -1   # block id of every condition position


class Layout:
    """Ids and positions for one `GeneratorConfig`.

    Attributes:
        block: N, tokens per step.
        condition_offset, video_offset: what is added to condition ids and video codes to make token ids.
        vocab_size: rows of the token embedding.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        self.block = config.block_size
        self.condition_len = config.condition_len
        self.num_codes = config.num_codes
        self.hybrid = config.start == "hybrid"
        self.begin = config.begin_token
        num_special = self.block if self.hybrid else int(self.begin)
        self.condition_offset = num_special
        self.video_offset = num_special + config.num_condition_ids
        self.vocab_size = self.video_offset + self.num_codes + int(config.spare_id)

    @property
    def first_predicted(self) -> int:
        """Index of the first video token that is predicted: 0, or N where the first block is always given."""
        return 0 if self.begin else self.block

    def check_length(self, length: int, what: str) -> None:
        """Refuse a number of video tokens that is not whole blocks.

        Raises:
            ValueError: with `what`, the length and what is accepted.
        """
        if length % self.block and not (self.hybrid and length < self.block):
            raise ValueError(f"{what}: {length} tokens are not a multiple of the block of {self.block} tokens")

    def known_positions(self, known: int) -> int:
        """Number of stream positions whose input exists once `known` video tokens do (0 if nothing can start)."""
        if self.hybrid:
            return known + 1 if known < self.block else known + self.block
        return known + self.block if self.begin else known

    def next_tokens(self, known: int) -> int:
        """How many tokens the next step predicts after `known` video tokens."""
        return 1 if self.hybrid and known < self.block else self.block

    def video_positions(self, length: int, device: torch.device | None = None) -> Tensor:
        """Stream positions of video tokens 0 .. length-1, int64 (length,)."""
        index = torch.arange(length, device=device)
        if self.hybrid:
            return torch.where(index < self.block, index + 1, index + self.block)
        return index + self.block if self.begin else index

    def stream(self, codes: Tensor) -> Tensor:
        """Token ids of the whole stream.

        Args:
            codes: video codes in step order, int64 (B, L).

        Returns:
            int64 (B, positions): begin ids, middle ids and video ids in place.
        """
        batch, length = codes.shape
        size = max(self.known_positions(length), 1)
        ids = codes.new_zeros(batch, size)                       # 0 is the begin id
        if self.hybrid and size > self.block + 1:
            middle = torch.arange(1, self.block, device=codes.device)
            ids[:, self.block + 1:2 * self.block] = middle
        ids[:, self.video_positions(length, codes.device)] = codes + self.video_offset
        return ids

    def num_inputs(self, length: int) -> int:
        """Stream positions that predict something inside a clip of `length` tokens."""
        return length - self.first_predicted

    def block_ids(self, num_positions: int, device: torch.device | None = None) -> Tensor:
        """Block id of each of the first positions of [condition | stream], int64 (num_positions,).

        Condition positions share -1; a query sees a key iff its block id is not smaller.
        """
        position = torch.arange(num_positions, device=device) - self.condition_len
        causal = self.block if self.hybrid else 0
        blocks = causal + (position - causal) // self.block
        return torch.where(position < 0, CONDITION, torch.where(position < causal, position, blocks))


def raster_order(block_shape: Sequence[int]) -> bool:
    """Whether step order is plain raster order: a block (1, 1, n) takes n codes and may run over a row's end."""
    return block_shape[0] == block_shape[1] == 1


def to_steps(indices: Tensor, block_shape: Sequence[int]) -> Tensor:
    """Put a clip's codes in the order they are predicted: raster over blocks, raster inside a block.

    Args:
        indices: (B, t, h, w).
        block_shape: (t, h, w) of a block.

    Returns:
        (B, t*h*w).
    """
    batch, *grid = indices.shape
    if raster_order(block_shape):
        return indices.reshape(batch, -1)
    (t, h, w), (bt, bh, bw) = grid, block_shape
    blocks = indices.reshape(batch, t // bt, bt, h // bh, bh, w // bw, bw)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1)     # number of the block, then place in it


def to_grid(steps: Tensor, grid: Sequence[int], block_shape: Sequence[int]) -> Tensor:
    """Invert `to_steps`: (B, t*h*w) in step order -> (B, t, h, w)."""
    batch = len(steps)
    if raster_order(block_shape):
        return steps.reshape(batch, *grid)
    counts = [g // b for g, b in zip(grid, block_shape)]
    blocks = steps.reshape(batch, *counts, *block_shape)
    return blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, *grid)


def check_grid(grid: Sequence[int], block_shape: Sequence[int], layout: Layout, name: str = "grid") -> None:
    """Refuse a grid that the blocks do not tile.

    Raises:
        ValueError: with `name`, the grid and the block shape; or no grid.
    """
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"{name} must be (t, h, w), each at least 1, got {tuple(grid)}")
    if raster_order(block_shape):
        layout.check_length(math.prod(grid), f"{name} {tuple(grid)}")
    elif any(g % b for g, b in zip(grid, block_shape)):
        raise ValueError(f"{name} {tuple(grid)} is not tiled by blocks of {tuple(block_shape)}")
