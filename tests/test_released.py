"""The released models in ckpt/: their sizes, what they say of themselves, and that they make clips of the games."""

from pathlib import Path

import pytest
import torch

import nbp
from nbp.hub.models import load_model

FOLDER = Path(__file__).parent.parent / "ckpt" / "NBP-procgen"
FINE = FOLDER.with_name("NBP-procgen-fine")


@pytest.mark.parametrize("folder", [FOLDER, FINE], ids=lambda folder: folder.name)
def test_a_model_fits_into_48_mb(folder):
    kinds = ("tokenizer", "generator")
    assert sum((folder / kind / "model.safetensors").stat().st_size for kind in kinds) <= 48e6
    for kind in kinds:
        _, _, state = load_model(folder / kind, kind)
        assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.parametrize("folder", [FOLDER, FINE], ids=lambda folder: folder.name)
def test_its_card_has_what_a_model_hub_reads(folder):
    from huggingface_hub import ModelCard

    facts = ModelCard.load(folder / "README.md").data
    assert facts.library_name == "nbp" and facts.license == "mit" and "video-generation" in facts.tags


@pytest.mark.parametrize("folder, grid", [(FOLDER / "tokenizer", (5, 8, 8)), (FINE / "tokenizer", (5, 16, 16))])
def test_a_clip_comes_back(folder, grid):
    """One that the generator makes up: there are no pictures of the games here."""
    clip = nbp.VideoPipeline.from_pretrained(FOLDER, device="cpu")(classes=["bossfight"], seed=0)
    tokenizer = nbp.load_magvit2(folder, device="cpu")
    tokens = tokenizer.encode(clip)[1]
    assert tuple(tokens.shape[1:]) == grid and tokenizer.resolution == 64
    error = (tokenizer.decode_from_code_indices(tokens.flatten(1)).clamp(0, 1) - clip).square().mean()
    assert error < 0.005 < (clip - clip.mean()).square().mean()


@pytest.mark.parametrize("folder, guidance", [(FOLDER, 2.0), (FINE, 3.0)])
def test_a_clip_of_a_game(folder, guidance):
    pipe = nbp.VideoPipeline.from_pretrained(str(folder), device="cpu")
    advice = pipe.about.sampling
    assert len(pipe.about.classes) == 12 and pipe.fps == 15
    assert (advice.temperature, advice.cfg_scale) == (0.8, guidance)
    clips = pipe(num_clips=2, seed=0)
    assert clips.shape == (2, 3, 17, 64, 64) and clips.std() > 0.02
    assert torch.equal(torch.cat(list(pipe.stream(num_clips=2, seed=0)), dim=2), clips), "streamed is whole, to the bit"


def test_a_released_folder_that_is_missing():
    with pytest.raises(ValueError, match="NBP-nothing"):
        nbp.VideoPipeline.from_pretrained("ckpt/NBP-nothing", device="cpu")
