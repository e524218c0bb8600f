"""What callers pass to the generator, checked and brought into step order.

Legend: B batch, (t, h, w) latent grid, L = t*h*w, N block size, C condition tokens, D width.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from nbp.config import GeneratorConfig
from nbp.generator.sequence import Layout, check_grid, raster_order, to_steps

Grid = tuple[int, ...]      # (t, h, w)
MOST_GUIDANCE = 1e6         # far above what is of use, far below what makes logits infinite


class Prefix(NamedTuple):
    """The condition in front of the stream: embeddings (B, C, D) and, where pads are hidden, which they are (B, C)."""

    embeddings: Tensor
    pads: Tensor | None


def to_step_order(indices: Tensor, config: GeneratorConfig, layout: Layout, name: str = "indices",
                  grid: Grid | None = None) -> Tensor:
    """Video codes in any accepted form -> int64 (B, n) in step order.

    Args:
        indices: integer (B, t, h, w), or flat (B, L) in raster order.
        config, layout: the model's.
        name: of the argument, for messages.
        grid: of the clip that flat codes are from; None: `config.grid`.

    Raises:
        ValueError: wrong shape, dtype or range, or codes that are not whole blocks.
    """
    shape, block_shape = tuple(indices.shape), config.block_shape
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.ndim not in (2, 4):
        raise ValueError(f"{name} must be integer video codes (B, t, h, w) or (B, L), got {indices.dtype} {shape}")
    indices = indices.long()                                      # not every operation knows uint16
    check_range(indices, config.num_codes, name)
    if indices.ndim == 2 and raster_order(block_shape):
        layout.check_length(shape[1], name)
        return indices                                            # (B, L)
    if indices.ndim == 2:
        height, width = (grid or config.grid)[1:]
        if shape[1] % (height * width):
            raise ValueError(f"{name}: {shape[1]} flat codes are not whole latent frames of {height}x{width}; "
                             f"blocks of {tuple(block_shape)} need (B, t, h, w)")
        indices = indices.unflatten(1, (-1, height, width))       # (B, t, h, w)
    check_grid(indices.shape[1:], block_shape, layout, name)
    return to_steps(indices, block_shape)                         # (B, L)


def given_codes(prefix: Tensor, config: GeneratorConfig, layout: Layout, grid: Grid) -> Tensor:
    """The codes that generation starts from, int64 (B, n) in step order.

    Raises:
        ValueError: as `to_step_order`; or they do not fit the clip.
    """
    given = to_step_order(prefix, config, layout, "prefix", grid)
    if prefix.ndim == 4 and tuple(prefix.shape[2:]) != grid[1:]:
        raise ValueError(f"prefix of {tuple(prefix.shape[1:])} does not fit a clip of {grid}")
    if not layout.first_predicted <= given.shape[1] <= math.prod(grid):
        raise ValueError(f"prefix: between {layout.first_predicted} and {math.prod(grid)} codes are needed "
                         f"for a clip of {grid}, got {given.shape[1]}")
    return given


def condition_ids(condition: Tensor, config: GeneratorConfig, batch: int) -> Tensor:
    """Condition ids int64 (B, C); labels may also come as (B,).

    Raises:
        ValueError: a model without a condition, or wrong shape, dtype or range.
    """
    if config.condition == "none":
        raise ValueError("condition given to a model without one (config.condition is none)")
    if condition.ndim == 1:
        condition = condition[:, None]                            # (B, 1)
    if condition.is_floating_point() or tuple(condition.shape) != (batch, config.condition_len):
        raise ValueError(f"condition must be integer ids ({batch}, {config.condition_len}), got "
                         f"{condition.dtype} {tuple(condition.shape)}")
    condition = condition.long()
    check_range(condition, config.num_condition_ids, "condition")
    return condition


def guidance(cfg_scale: float | None, config: GeneratorConfig, conditional: bool) -> float | None:
    """The scale that changes anything, or None; warns where the unconditional embedding was never trained.

    Raises:
        ValueError: no number, one out of range, or nothing to be guided towards.
    """
    if cfg_scale is not None and not abs(cfg_scale) <= MOST_GUIDANCE:
        raise ValueError(f"cfg_scale must be a number up to {MOST_GUIDANCE:g}, or None for no guidance, got "
                         f"{cfg_scale}")
    scale = None if cfg_scale == 1 else cfg_scale
    if scale is not None and not conditional:
        raise ValueError(f"cfg_scale={cfg_scale} needs a condition to be guided towards")
    if config.condition_len and not config.condition_dropout and (scale is not None or not conditional):
        what = f"cfg_scale={cfg_scale}" if scale is not None else "generating without a condition"
        warnings.warn(f"{what} uses the unconditional embedding, which this model never trained (its "
                      "condition_dropout is 0): expect worse clips; train with model.condition_dropout=0.1")
    return scale


def check_range(ids: Tensor, size: int, name: str) -> None:
    """Refuse ids outside 0 .. size-1, where that does not wait for the device.

    Raises:
        ValueError: with `name`, what was found and what is accepted.
    """
    if ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(low)}..{int(high)}")
