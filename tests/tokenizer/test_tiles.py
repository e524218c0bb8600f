"""Tiles: the whole within the stated error, exact where no tile lacks what it needs."""

import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.tiles import _fade, _spans, decode_tiles, encode_tiles

RELEASED = "ckpt/NBP-procgen/tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained(RELEASED)


@pytest.fixture(scope="module")
def large(tokenizer):
    """Smooth pictures that move, twice the size of a training clip: (1, 3, 5, 128, 128)."""
    noise = torch.rand(1, 3, 19, 19, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic").clamp(0, 1)
    return torch.stack([picture[..., 2 * t:2 * t + 128, t:t + 128] for t in range(5)], 2)


@torch.no_grad()
def test_the_stated_error(tokenizer, large):
    codes, indices = tokenizer.encode(large)
    whole = tokenizer.decode(codes)
    tiled = decode_tiles(tokenizer, indices, 96, 32)
    assert tiled.shape == whole.shape and (tiled - whole).abs().mean() < 0.005 and (tiled - whole).abs().max() < 0.1
    found = encode_tiles(tokenizer, large, 96, 32)
    assert found.shape == indices.shape and found.dtype == indices.dtype
    psnr = [-10 * (video.clamp(0, 1) - large).square().mean().log10()
            for video in (whole, decode_tiles(tokenizer, found, 96, 32))]
    assert abs(psnr[0] - psnr[1]) < 0.3


@torch.no_grad()
def test_one_tile_is_the_whole(tokenizer, large):
    codes, indices = tokenizer.encode(large)
    assert torch.equal(encode_tiles(tokenizer, large, 128, 64), indices)
    torch.testing.assert_close(decode_tiles(tokenizer, indices, 192, 0), tokenizer.decode(codes))


@torch.no_grad()
def test_exact_where_no_layer_looks_aside():
    """A layer-normed tokenizer whose convolutions see one pixel only: tiles of any overlap join without a trace."""
    tokenizer = Tokenizer(TokenizerConfig([8, 8], [1, 1], [[1, 1, 1]], [4, 4], [1, 4, 4], "full")).eval()
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[1] == 3:
            kept = module.weight[..., 1:2, 1:2].clone()
            module.weight.zero_()[..., 1:2, 1:2] = kept
    video = torch.rand(2, 3, 3, 24, 40)
    codes, indices = tokenizer.encode(video)
    for tile, overlap in ((12, 4), (16, 12), (8, 0)):
        assert torch.equal(encode_tiles(tokenizer, video, tile, overlap), indices)
        torch.testing.assert_close(decode_tiles(tokenizer, indices, tile, overlap), tokenizer.decode(codes))


@pytest.mark.parametrize("size, tile, overlap", [(16, 16, 4), (16, 6, 2), (17, 6, 2), (9, 4, 3), (5, 8, 0)])
def test_tiles_cover_an_axis_and_share_what_they_should(size, tile, overlap):
    spans = list(_spans(size, tile, overlap))
    assert spans[0].start == 0 and spans[-1].stop == size
    assert all(one.stop - other.start >= overlap for one, other in zip(spans, spans[1:]))
    weights = torch.zeros(2 * size)
    for span in spans:
        fade = _fade(span, size, overlap, 2)
        assert len(fade) == 2 * min(tile, size) and fade.min() > 0 and fade.max() <= 1
        weights[2 * span.start:2 * span.stop] += fade
    assert weights.min() > 0


@pytest.mark.parametrize("tile, overlap", [(94, 32), (96, 30), (64, 64), (64, -8)])
def test_sizes_that_are_not_cells_are_refused(tokenizer, large, tile, overlap):
    with pytest.raises(ValueError, match=f"tile={tile}, overlap={overlap}: both must be multiples of 8 pixels"):
        encode_tiles(tokenizer, large, tile, overlap)
