"""Tokens of natural video in bfloat16."""

from pathlib import Path

import pytest
import torch

from nbp.data.clips import fit_square, frames_to_video
from nbp.data.cut import first, read_clip
from nbp.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def clips(sample_videos):
    """(3, 3, 17, 64, 64): one clip of each natural video, 8 frames a second."""
    videos = []
    for path in sample_videos:
        videos.append(frames_to_video(fit_square(read_clip(path, 17, fps=8, place=first), 64, "aspect")))
    return torch.stack(videos)


@pytest.fixture
def tokenizer():
    """Trained weights: tokens of a random network do not depend on the picture as much."""
    return Tokenizer.from_pretrained(Path(__file__).parents[2] / "ckpt" / "NBP-procgen" / "tokenizer")


@torch.no_grad()
def test_tokens_do_not_depend_on_autocast(tokenizer, clips):
    tokens = tokenizer.encode(clips)[1]
    assert tokens.unique().numel() > 100
    with torch.autocast("cpu", torch.bfloat16):
        codes, low = tokenizer.encode(clips)
        video = tokenizer.decode(codes)
    assert (low == tokens).float().mean() >= 0.99
    assert (video.float() - tokenizer.decode(codes)).abs().mean() < 0.01


@torch.no_grad()
def test_a_bfloat16_model_gives_valid_tokens_and_mostly_the_same(tokenizer, clips):
    tokens = tokenizer.encode(clips)[1]
    low = tokenizer.bfloat16().encode(clips)[1]
    assert low.dtype == torch.int32 and 0 <= low.min() and low.max() < tokenizer.num_codes
    assert (low == tokens).float().mean() > 0.8
