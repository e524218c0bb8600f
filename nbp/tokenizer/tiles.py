"""Encode and decode large frames tile by tile: memory for one tile, at the price of a small error.

Neighbouring tiles share `overlap` pixels, over which one fades into the other, before quantisation or in pixels. What
a tile does not see is what lies beyond it: convolutions reach a few cells, and published units normalise whole frames.
Measured with the released tokenizer in docs/experiments.md. Legend: B batch, T H W pixels, t h w latent grid.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nbp.tokenizer.model import Tokenizer


@torch.no_grad()
def encode_tiles(tokenizer: Tokenizer, video: Tensor, tile: int, overlap: int) -> Tensor:
    """Indices int32 (B, t, h, w) of a video.

    Args:
        tokenizer: in eval mode.
        video: float (B, 3, T, H, W) in [0, 1], as for `Tokenizer.encode`.
        tile: height and width of a tile in pixels, a multiple of the tokenizer's stride.
        overlap: pixels that neighbours share, a multiple of it below `tile`.

    Raises:
        ValueError: wrong shape, dtype or range of the video, or sizes that are not.
    """
    tokenizer.check_video(video)
    cells = _cells(tokenizer, tile, overlap)
    down = tokenizer.config.downsample
    grid = tokenizer.config.latent_grid(*video.shape[2:])

    def latents(top: slice, left: slice) -> Tensor:
        part = video[..., top.start * down[1]:top.stop * down[1], left.start * down[2]:left.stop * down[2]]
        encoded = tokenizer.encode(part, quantize=False)
        assert isinstance(encoded, Tensor)
        return encoded

    return tokenizer.quantize(_blend(latents, grid, (1, 1), *cells))[1]


@torch.no_grad()
def decode_tiles(tokenizer: Tokenizer, indices: Tensor, tile: int, overlap: int) -> Tensor:
    """Video (B, 3, T, H, W) of indices (B, t, h, w), not clamped; arguments and errors as for `encode_tiles`."""
    def video(top: slice, left: slice) -> Tensor:
        return tokenizer.decode_from_code_indices(indices[..., top, left])

    indices = tokenizer.check_indices(indices)
    cells, down = _cells(tokenizer, tile, overlap), tokenizer.config.downsample
    return _blend(video, indices.shape[1:], down[1:], *cells)


def _cells(tokenizer: Tokenizer, tile: int, overlap: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tile and overlap in cells of the latent grid, (h, w) each."""
    down = tokenizer.config.downsample[1:]
    if any(tile % step or overlap % step for step in down) or not 0 <= overlap < tile:
        raise ValueError(f"tile={tile}, overlap={overlap}: both must be multiples of {max(down)} pixels, and "
                         "0 <= overlap < tile")
    return (tile // down[0], tile // down[1]), (overlap // down[0], overlap // down[1])


def _spans(size: int, tile: int, overlap: int) -> Iterator[slice]:
    """Tiles of one axis, evenly spread, neighbours sharing at least `overlap` cells."""
    tile = min(tile, size)
    count = 1 if tile == size else -(-(size - overlap) // (tile - overlap))
    for number in range(count):
        start = 0 if count == 1 else round(number * (size - tile) / (count - 1))
        yield slice(start, start + tile)


def _blend(function: Callable[[slice, slice], Tensor], grid: tuple[int, ...], scale: tuple[int, ...],
           tile: tuple[int, int], overlap: tuple[int, int]) -> Tensor:
    """The whole of what `function` makes of each tile, cells (h, w) being `scale` values high and wide."""
    height, width = grid[-2], grid[-1]
    total = weights = torch.zeros(())
    for top in _spans(height, tile[0], overlap[0]):
        for left in _spans(width, tile[1], overlap[1]):
            part = function(top, left)
            if not total.ndim:
                total = part.new_zeros(*part.shape[:-2], height * scale[0], width * scale[1])
                weights = total.new_zeros(total.shape[-2:])
            across = _fade(left, width, overlap[1], scale[1])
            fade = (_fade(top, height, overlap[0], scale[0])[:, None] * across).to(part)
            rows, columns = (slice(span.start * step, span.stop * step) for span, step in zip((top, left), scale))
            total[..., rows, columns] += part * fade
            weights[rows, columns] += fade
    return total / weights


def _fade(span: slice, size: int, overlap: int, scale: int) -> Tensor:
    """Weights of a tile's values along one axis: 1, but rising and falling towards its neighbours."""
    place = torch.arange((span.stop - span.start) * scale) + 0.5
    ramp = torch.ones(len(place))
    if span.start > 0 and overlap:
        ramp = torch.minimum(ramp, place / (overlap * scale))
    if span.stop < size and overlap:
        ramp = torch.minimum(ramp, place.flip(0) / (overlap * scale))
    return ramp
