"""The tokenizer against recorded outputs of the official code on rule-made weights (tests/parity)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import weights_rule
from parity.compare import close, same, tensor

from nbp.download import load_magvit2
from nbp.tokenizer.fsq import FSQ

PARITY = Path(__file__).parent
SHAPES = json.loads((PARITY / "tokenizer_keys.json").read_text())["shapes_in_state_dict_order"]
LEVELS = [8, 8, 8, 5, 5, 5]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Loaded from an official file with rule-made weights (370M parameters)."""
    path = tmp_path_factory.mktemp("official") / "magvit2.pt"
    state = weights_rule.state_dict(SHAPES)
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    loaded = load_magvit2(path, resolution=64, device="cpu")
    path.unlink()
    return loaded


@pytest.mark.parametrize("name, video, num_frames", [
    pytest.param("tok_img64", (11, 1, 1, 64, 64), 1, id="image"),
    pytest.param("tok_v64", (12, 1, 17, 64, 64), 5, id="first 5 frames of a clip"),       # causal: they stand alone
    pytest.param("tok_v64", (12, 1, 17, 64, 64), 17, id="clip", marks=pytest.mark.slow),
])
def test_tokenizer(tokenizer, name, video, num_frames):
    recorded = {key: value[:, :, :(num_frames + 3) // 4] if key != "tokens" else value[:, :(num_frames + 3) // 4]
                for key, value in np.load(PARITY / f"{name}.npz").items() if value.ndim >= 4 and "sub4" not in key}
    whole = np.load(PARITY / f"{name}.npz")
    clip, recon = weights_rule.video(*video), whole["recon_sub4"][:, :, :num_frames]
    close(f"{name} input", clip.squeeze(2)[..., ::4, ::4], whole["video_sub4"], 0)
    name = f"{name}[:{num_frames}]"
    with torch.no_grad():
        latents = tokenizer.encode(clip[:, :, :num_frames], quantize=False)
        codes, tokens = tokenizer.fsq(latents)
        decoded = tokenizer.decode_from_code_indices(tokens)
    same(f"{name} tokens", tokens, recorded["tokens"])
    close(f"{name} latents", latents, recorded["latents"], 1e-4)
    close(f"{name} bounded", tokenizer.fsq.bound(latents), recorded["bounded"], 1e-4)
    close(f"{name} quantized", codes, recorded["quantized"], 1e-6)
    close(f"{name} reconstruction", decoded[..., ::4, ::4], recon, 2e-4)
    frames = decoded.double().movedim(2, 0).flatten(1)
    close(f"{name} mean of each frame", frames.mean(1), whole["recon_mean_per_frame"][:num_frames], 2e-4)
    close(f"{name} deviation of each frame", frames.std(1), whole["recon_std_per_frame"][:num_frames], 2e-4)
    if num_frames == 1:
        assert torch.equal(tokenizer.decode_from_code_indices(tokens.flatten(1)), decoded)


def test_fsq():
    recorded = np.load(PARITY / "fsq.npz")
    fsq = FSQ(LEVELS)
    latents = tensor(recorded["z"]).movedim(-1, 1)
    codes, indices = fsq(latents)
    close("fsq bounded", fsq.bound(latents).movedim(1, -1), recorded["bounded"], 1e-6)
    close("fsq quantized", codes.movedim(1, -1), recorded["quantized"], 1e-6)
    same("fsq indices", indices, recorded["indices"])
    close("fsq first 50 codes", fsq.indices_to_codes(torch.arange(50)[None])[0], recorded["codebook_first"], 1e-6)
    close("fsq last 50 codes", fsq.indices_to_codes(torch.arange(63950, 64000)[None])[0], recorded["codebook_last"],
          1e-6)
