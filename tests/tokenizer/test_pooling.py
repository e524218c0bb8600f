"""A new tokenizer that starts as average pooling."""

import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.pooling import start_as_pooling

STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(widths, num_res_blocks=(1, 1, 1, 1)):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(list(widths), list(num_res_blocks), STRIDES, [8, 8, 8, 5, 5]))
    start_as_pooling(tokenizer)
    return tokenizer


def blocks():
    """Video (2, 3, 17, 32, 32) of one colour per latent cell, and these colours (2, 3, 5, 4, 4)."""
    cells = torch.rand(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    video = torch.cat([cells[:, :, :1], cells[:, :, 1:].repeat_interleave(4, 2)], 2)
    return video.repeat_interleave(8, 3).repeat_interleave(8, 4), cells


@pytest.mark.parametrize("widths, num_res_blocks", [((8, 24, 48, 96), (1, 1, 1, 2)), ((8, 8, 8, 8), (0, 0, 0, 0)),
                                                    ((128, 128, 256, 512), (1, 1, 1, 1))])
def test_latents_are_the_cells_mean_colours_and_come_back(widths, num_res_blocks):
    tokenizer = build(widths, num_res_blocks).eval()
    video, cells = blocks()
    noisy = (video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    with torch.no_grad():
        latents = tokenizer.encode(noisy, quantize=False)[:, :3]
        decoded = tokenizer(noisy)[0]
    for colour in range(3):
        pair = torch.stack([latents[:, colour].flatten(), cells[:, colour].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99
    assert (decoded - video).abs().mean() < 0.07       # 8 levels: 0.03 by themselves
    assert (decoded[:, :, :1] - tokenizer(noisy[:, :, :1])[0]).abs().max() < 1e-4


def test_brightness_of_a_whole_frame_survives_the_norms():
    tokenizer = build((8, 16, 16, 16)).eval()
    with torch.no_grad():
        means = [tokenizer(torch.full((1, 3, 1, 32, 32), level))[0].mean().item() for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert means == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.12) and means == sorted(means)


def test_every_parameter_learns():
    tokenizer = build((8, 8, 16, 16), (1, 1, 1, 2))
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.01)
    video, _ = blocks()
    for _ in range(2):                                 # weights behind a zero row move from the second step on
        optimizer.zero_grad()
        (tokenizer(video)[0] - video.flip(3)).square().mean().backward()
        optimizer.step()
    assert [name for name, p in tokenizer.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("changes", [dict(widths=[4, 8, 8, 8]), dict(fsq_levels=[8, 8])])
def test_models_without_room_are_refused(changes):
    config = TokenizerConfig(**dict(widths=[8, 8, 8, 8], num_res_blocks=[1, 1, 1, 1], strides=STRIDES,
                                    fsq_levels=[5, 5, 5]) | changes)
    with pytest.raises(ValueError, match="pooling_start needs"):
        start_as_pooling(Tokenizer(config))
