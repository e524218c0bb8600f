"""Causality, round trips, shapes and refusals of the tokenizer."""

import copy
import math

import numpy as np
import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.fsq import FSQ
from nbp.tokenizer.layers import CausalConv3d
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import encode_chunks
from nbp.tokenizer.tiles import encode_tiles

STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig([8, 16, 16, 32], [1, 1, 1, 2], STRIDES, [8, 8, 8, 5, 5, 5]), resolution=32).eval()


@pytest.fixture(scope="module")
def video():
    return torch.rand(2, 3, 17, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_latents_of_a_prefix_are_the_prefix_of_the_latents(tokenizer, video):
    whole = tokenizer.encode(video, quantize=False)
    for num_frames in (1, 5, 9, 13):
        part = tokenizer.encode(video[:, :, :num_frames], quantize=False)
        torch.testing.assert_close(part, whole[:, :, :part.shape[2]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("frame", [1, 4, 5, 16])
def test_a_frame_never_changes_earlier_latents(tokenizer, video, frame):
    changed = video.clone()
    changed[:, :, frame:] = 1 - changed[:, :, frame:]
    before, after = (tokenizer.encode(v, quantize=False) for v in (video, changed))
    untouched = (frame - 1) // 4 + 1  # latent frame k > 0 covers the frames 4k-3 .. 4k
    assert torch.equal(before[:, :, :untouched], after[:, :, :untouched])
    assert not torch.equal(before[:, :, untouched], after[:, :, untouched])


@torch.no_grad()
def test_decoding_a_prefix_is_the_prefix_of_the_video(tokenizer, video):
    _, indices = tokenizer.encode(video)
    whole = tokenizer.decode_from_code_indices(indices)
    assert whole.shape == video.shape
    for t in (1, 2, 4):
        part = tokenizer.decode_from_code_indices(indices[:, :t])
        torch.testing.assert_close(part, whole[:, :, :part.shape[2]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_flat_indices_decode_as_the_grid(tokenizer, video):
    _, indices = tokenizer.encode(video)
    torch.testing.assert_close(tokenizer.decode_from_code_indices(indices.flatten(1)),
                               tokenizer.decode_from_code_indices(indices), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint8, np.int64])
def test_indices_decode_as_they_are_stored(tokenizer, video, dtype):
    """Token caches hold uint16, clip sets int32 in numpy, and a mapped file is read-only."""
    indices = tokenizer.encode(video)[1] % 200
    want = tokenizer.decode_from_code_indices(indices)
    stored = indices.numpy().astype(dtype)
    stored.flags.writeable = False
    assert torch.equal(tokenizer.decode_from_code_indices(stored), want)
    assert torch.equal(tokenizer.decode_from_code_indices(torch.tensor(stored).flatten(1)), want)


def test_encoding_and_decoding_keep_no_graph(tokenizer, video):
    codes, indices = tokenizer.encode(video[:, :, :5])
    assert not codes.requires_grad and not tokenizer.encode(video[:, :, :1], quantize=False).requires_grad
    assert not tokenizer.decode_from_code_indices(indices).requires_grad
    assert tokenizer(video[:, :, :1])[0].requires_grad, "training has its gradients"
    torch.nn.Embedding(64000, 2)(indices).sum().backward()     # what comes out may be used in training



@torch.no_grad()
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_one_frame_takes_the_2d_path_to_the_same_result(stride):
    conv = CausalConv3d(4, 6, stride)
    x = torch.randn(2, 4, 1, 8, 8)
    longer = conv(x.repeat(1, 1, 5, 1, 1))
    torch.testing.assert_close(conv(x), longer[:, :, :1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_latents_that_are_not_finite_are_no_code(tokenizer, video):
    broken = copy.deepcopy(tokenizer)
    with torch.no_grad():
        broken.encoder.head[-1].bias.fill_(math.nan)
    for encode in (broken.encode, lambda video: list(encode_chunks(broken, [video])),
                   lambda video: encode_tiles(broken, video, video.shape[-1], 0)):
        with pytest.raises(ValueError, match="the encoder gave NaN or infinity in torch.float32"):
            encode(video)


@pytest.mark.parametrize("size", [(1, 24, 40), (5, 16, 8), (9, 8, 16)])
def test_any_size_comes_back(tokenizer, size):
    video = torch.rand(1, 3, *size)
    _, indices = tokenizer.encode(video)
    assert indices.shape == (1, (size[0] - 1) // 4 + 1, size[1] // 8, size[2] // 8)
    assert tokenizer.decode_from_code_indices(indices).shape == video.shape


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5]])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_index_survives_a_round_trip(levels, autocast):
    fsq = FSQ(levels)
    indices = torch.arange(fsq.num_codes).view(1, -1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        codes = fsq.indices_to_codes(indices)
        half = torch.tensor(levels).view(1, -1, 1) // 2
        again = ((codes * half).round().long() + half)
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0).view(1, -1, 1)
        assert torch.equal((again * basis).sum(1), indices)
        # Latents that bound to the middle of each cell must quantize to that very cell.
        assert torch.equal(fsq(_latents_of(fsq, codes))[1].long(), indices)
        assert torch.equal(fsq.bfloat16()(_latents_of(fsq, codes))[1].long(), indices)


def _latents_of(fsq, codes):
    """Invert `FSQ.bound` in float64."""
    levels = fsq._levels.view(1, -1, 1).double()
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0).double()
    bounded = (codes.double() * (levels // 2)).clamp(-half - offset + 1e-2, half - offset - 1e-2)
    return (torch.atanh((bounded + offset) / half) - torch.tan(offset / half)).float()


def test_gradient_passes_straight_through():
    latents = torch.randn(1, 4, 10, requires_grad=True)
    codes, _ = FSQ([8, 5, 5, 5])(latents)
    codes.sum().backward()
    assert (latents.grad > 0).all()


@pytest.mark.parametrize("video, message", [
    (torch.rand(1, 3, 4, 32, 32), "1 \\+ 4k frames, got T = 4"),
    (torch.rand(1, 3, 5, 30, 32), "divisible by 8 and 8, got 30x32"),
    (torch.rand(1, 4, 5, 32, 32), "\\(B, 3, T, H, W\\)"),
    (torch.rand(3, 5, 32, 32), "\\(B, 3, T, H, W\\)"),
    (torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8), "torch.uint8"),
    (torch.rand(1, 3, 5, 32, 32) * 255, "must lie in \\[0, 1\\]"),
    (torch.full((1, 3, 5, 32, 32), float("nan")), "must lie in \\[0, 1\\], got \\[nan"),
])
def test_bad_video_is_refused_by_name(tokenizer, video, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(video)


@pytest.mark.parametrize("indices, message", [
    (torch.full((1, 1, 4, 4), 64000), "64000"),
    (torch.full((1, 1, 4, 4), -1), "-1"),
    (torch.zeros(1, 15, dtype=torch.long), "15 flat indices"),
])
def test_bad_indices_are_refused_by_value(tokenizer, indices, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode_from_code_indices(indices)


@pytest.mark.parametrize("change, message", [
    (dict(widths=[8, 16]), "n and n-1"),
    (dict(strides=[[1, 2, 2], [2, 2, 2], [3, 2, 2]]), r"\[3, 2, 2\]"),
    (dict(widths=[8, 16, 18, 32]), "divisible by 4"),
    (dict(num_res_blocks=[1, 0, 1, 1]), "residual unit"),
    (dict(widths=[8], num_res_blocks=[1], strides=[]), "n > 1"),
    (dict(fsq_levels=[8, 1]), "at least 2"),
])
def test_bad_config_is_refused(change, message):
    fields = dict(widths=[8, 16, 16, 32], num_res_blocks=[1, 1, 1, 1], strides=STRIDES, fsq_levels=[8, 5])
    with pytest.raises(ValueError, match=message):
        Tokenizer(TokenizerConfig(**(fields | change)))
