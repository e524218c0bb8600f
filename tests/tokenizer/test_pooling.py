"""A new tokenizer that starts with the mean colours and the brightness slopes of its latent cells."""

import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.pooling import COLOURS, start_as_pooling

STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2]]
CELL = torch.linspace(-7, 7, 8) / 16                   # places of 8 pixels in a cell of width 1
SLOPES = {"width": 3, "height": 4, "time": 5}          # FSQ channels


def build(widths=(8, 24, 48, 96), num_res_blocks=(1, 1, 1, 1), fsq_levels=(8, 8, 8, 8, 8, 8)):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(list(widths), list(num_res_blocks), STRIDES, list(fsq_levels)))
    start_as_pooling(tokenizer)
    return tokenizer


def noise(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blocks():
    """Video (2, 3, 17, 32, 32) of one colour per latent cell, and these colours (2, 3, 5, 4, 4)."""
    cells = noise(2, 3, 5, 4, 4, seed=1)
    video = torch.cat([cells[:, :, :1], cells[:, :, 1:].repeat_interleave(4, 2)], 2)
    return video.repeat_interleave(8, 3).repeat_interleave(8, 4), cells


def ramps(axis):
    """Grey video (2, 3, 17, 32, 32) with one brightness ramp per latent cell, and their heights (2, 5, 4, 4)."""
    heights = noise(2, 5, 4, 4, seed=3) * 0.8 - 0.4
    frames = torch.cat([heights[:, :1], heights[:, 1:].repeat_interleave(4, 1)], 1)
    pixels = frames.repeat_interleave(8, 2).repeat_interleave(8, 3)
    places = {"width": CELL.repeat(4), "height": CELL.repeat(4)[:, None],
              "time": torch.cat([torch.zeros(1), (torch.arange(4) / 4 - 0.375).repeat(4)])[:, None, None]}[axis]
    return (0.5 + pixels * places)[:, None].expand(-1, 3, -1, -1, -1).contiguous(), heights


def correlation(x, y):
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()


@pytest.mark.parametrize("widths, num_res_blocks", [((8, 24, 48, 96), (1, 1, 1, 2)), ((12, 12, 12, 12), (0, 0, 0, 0)),
                                                    ((128, 128, 256, 512), (1, 1, 1, 1))])
def test_latents_are_the_cells_mean_colours_and_come_back(widths, num_res_blocks):
    tokenizer = build(widths, num_res_blocks).eval()
    video, cells = blocks()
    noisy = (video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    with torch.no_grad():
        latents = tokenizer.encode(noisy, quantize=False)
        decoded = tokenizer(noisy)[0]
        first = tokenizer(noisy[:, :, :1])[0]
    expected = torch.einsum("kc,bcthw->bkthw", COLOURS, cells - 0.5)
    for channel in range(3):
        assert correlation(latents[:, channel], expected[:, channel]) > 0.98
    assert correlation(decoded, video) > 0.9           # uniform colours are more vivid than SPREAD allows for
    assert (decoded[:, :, :1] - first).abs().max() < 1e-4


@pytest.mark.parametrize("axis", list(SLOPES))
def test_ramps_of_brightness_come_back(axis):
    tokenizer = build().eval()
    video, heights = ramps(axis)
    first = 1 if axis == "time" else 0
    with torch.no_grad():
        latents = tokenizer.encode(video, quantize=False)
        decoded = tokenizer(video)[0]
    assert correlation(latents[:, SLOPES[axis], first:], heights[:, first:]) > 0.99
    for other in set(SLOPES) - {axis}:
        assert latents[:, SLOPES[other], first:].abs().max() < 0.1 * latents[:, SLOPES[axis]].abs().max()
    assert correlation(decoded[:, :, first * 4:], video[:, :, first * 4:]) > 0.9


def test_a_first_frame_has_no_slope_in_time():
    tokenizer = build().eval()
    with torch.no_grad():
        latents = tokenizer.encode(noise(2, 3, 17, 32, 32, seed=4), quantize=False)
    assert latents[:, SLOPES["time"], 0].abs().max() < 1e-4 < latents[:, SLOPES["time"], 1:].abs().max()


def test_brightness_of_a_whole_frame_survives_the_norms():
    tokenizer = build((12, 16, 16, 16)).eval()
    with torch.no_grad():
        means = [tokenizer(torch.full((1, 3, 1, 32, 32), level))[0].mean().item()
                 for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert means == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.15) and means == sorted(means)


def test_every_parameter_learns():
    tokenizer = build((8, 8, 16, 16), (1, 1, 1, 2))
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.01)
    video, _ = blocks()
    for _ in range(2):                                 # weights behind a zero row move from the second step on
        optimizer.zero_grad()
        (tokenizer(video)[0] - video.flip(3)).square().mean().backward()
        optimizer.step()
    assert [name for name, p in tokenizer.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("changes, message", [
    (dict(widths=[4, 8, 12, 12]), "widths of at least 8"), (dict(widths=[8, 8, 8, 8]), "at least 12"),
    (dict(fsq_levels=[8, 8]), "at least 3 fsq_levels")])
def test_models_without_room_are_refused(changes, message):
    config = TokenizerConfig(**dict(widths=[12, 12, 12, 12], num_res_blocks=[1, 1, 1, 1], strides=STRIDES,
                                    fsq_levels=[5] * 6) | changes)
    with pytest.raises(ValueError, match=f"pooling_start needs.*{message}"):
        start_as_pooling(Tokenizer(config))
