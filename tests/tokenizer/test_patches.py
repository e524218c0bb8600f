"""Patches and cheap units keep what the published tokenizer promises: causality, prefixes, images, every code."""

import dataclasses

import pytest
import torch

from nbp import convert
from nbp.config import TokenizerConfig, load_run
from nbp.hub.about import About, read_about, write_about
from nbp.tokenizer.model import Tokenizer
from nbp.workflows import converting

PATCHED = {
    "split": dict(widths=[16, 24], num_res_blocks=[1, 2], strides=[[1, 2, 2]], patch=[4, 4, 4], units="split"),
    "full": dict(widths=[16, 24], num_res_blocks=[0, 1], strides=[[1, 2, 2]], patch=[4, 4, 4], units="full"),
    "published units": dict(widths=[16, 24], num_res_blocks=[1, 1], strides=[[1, 2, 2]], patch=[4, 4, 4]),
    "strides in time": dict(widths=[16, 16, 24], num_res_blocks=[1, 1, 1], strides=[[1, 2, 2], [2, 1, 1]],
                            patch=[2, 4, 4], units="split"),
    "no patches": dict(widths=[8, 8, 16], num_res_blocks=[1, 1, 1], strides=[[2, 2, 2], [2, 2, 2]], units="full"),
}


@pytest.fixture(params=PATCHED)
def tokenizer(request):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(fsq_levels=[5, 4, 3], **PATCHED[request.param])).eval()


@pytest.fixture
def video():
    return torch.rand(2, 3, 17, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_grid_and_shapes(tokenizer, video):
    _, indices = tokenizer.encode(video)
    assert tuple(indices.shape[1:]) == tokenizer.config.latent_grid(17, 32, 32)
    assert tokenizer.config.downsample[0] == 4 and indices.shape[1] == 5
    assert tokenizer.decode_from_code_indices(indices).shape == video.shape


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_prefix_gives_the_prefix(tokenizer, video, frames):
    latents, count = tokenizer.encode(video, quantize=False), 1 + (frames - 1) // 4
    torch.testing.assert_close(tokenizer.encode(video[:, :, :frames], quantize=False), latents[:, :, :count],
                               rtol=1e-4, atol=1e-5)
    codes, _ = tokenizer.encode(video)
    torch.testing.assert_close(tokenizer.decode(codes[:, :, :count]), tokenizer.decode(codes)[:, :, :frames],
                               rtol=1e-4, atol=1e-5)


def test_no_gradient_from_the_future(tokenizer, video):
    video = video.clone().requires_grad_()
    tokenizer.encoder(video)[:, :, 2].sum().backward()          # sees frames 0 .. 8
    seen = video.grad.abs().amax((0, 1, 3, 4))
    assert (seen[:9] > 0).all() and (seen[9:] == 0).all()
    codes = torch.zeros(1, 3, 5, *tokenizer.config.latent_grid(17, 32, 32)[1:], requires_grad=True)
    tokenizer.decode(codes)[:, :, 8].sum().backward()
    seen = codes.grad.abs().amax((0, 1, 3, 4))
    assert (seen[:3] > 0).all() and (seen[3:] == 0).all()


@torch.no_grad()
def test_every_code_survives_the_round_trip(tokenizer):
    _, h, w = tokenizer.config.latent_grid(1, 32, 32)
    every = torch.arange(-(-tokenizer.num_codes // (h * w)) * h * w) % tokenizer.num_codes
    indices = every.view(-1, 1, h, w)
    codes = tokenizer.fsq.indices_to_codes(indices)
    digits = ((codes + 1) * (tokenizer.fsq._levels // 2).view(1, -1, 1, 1, 1)).round().long()
    assert torch.equal((digits * tokenizer.fsq._basis.view(1, -1, 1, 1, 1)).sum(1), indices)
    assert torch.equal(tokenizer.decode_from_code_indices(indices), tokenizer.decode(codes))


def test_a_patch_that_does_not_divide_is_refused(tokenizer):
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        tokenizer.config.latent_grid(16, 32, 32)
    with pytest.raises(ValueError, match="divisible by"):
        tokenizer.encode(torch.rand(1, 3, 5, 36 + 2, 32))
    with pytest.raises(ValueError, match="1 \\+ 4k frames, got T = 7"):
        tokenizer.encode(torch.rand(1, 3, 7, 32, 32))


@pytest.mark.parametrize("field, value, message", [
    ("patch", [4, 4], "patch is"), ("patch", [3, 4, 4], "patch is"), ("units", "cheap", "units must be"),
    ("fsq_levels", [5, 1], "at least 2")])
def test_bad_fields_are_named(field, value, message):
    config = TokenizerConfig(fsq_levels=[5, 4], **PATCHED["split"])
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **{field: value}).check()


def test_levels_of_two_are_warned_of():
    with pytest.warns(UserWarning, match="level of 2"):
        TokenizerConfig(fsq_levels=[5, 2], **PATCHED["split"]).check()


def test_a_clip_that_patches_do_not_divide_stops_the_run():
    with pytest.raises(ValueError, match="1 \\+ 8k"):
        load_run("tests/fixtures/runs/tokenizer.yaml", ["model.patch=[2,1,1]"])


def test_new_fields_are_off_for_older_files():
    config = TokenizerConfig(widths=[8, 8], num_res_blocks=[1, 1], strides=[[2, 2, 2]], fsq_levels=[5, 5])
    assert config.patch == [1, 1, 1] and config.units == "published" and not config.patched


def test_saved_and_loaded(tokenizer, tmp_path, video):
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert torch.equal(again.encode(video)[1], tokenizer.encode(video)[1])


def test_half_the_size_is_loaded_in_float32(tokenizer, tmp_path, video):
    tokenizer.save_pretrained(tmp_path / "whole")
    write_about(tmp_path / "whole", About("own", fps=15), "tokenizer")
    (tmp_path / "whole" / "README.md").write_text("mine")
    convert.main(["native-to-half", str(tmp_path / "whole"), str(tmp_path / "half")])
    assert read_about(tmp_path / "half") == About("own", fps=15)
    assert (tmp_path / "half" / "README.md").read_text() == "mine"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    again = Tokenizer.from_pretrained(tmp_path / "half")
    assert sizes[1] < 0.6 * sizes[0] and {p.dtype for p in again.parameters()} == {torch.float32}
    assert (again.encode(video)[1] == tokenizer.encode(video)[1]).float().mean() > 0.95


def test_what_float16_cannot_hold_is_refused(tokenizer, tmp_path):
    with torch.no_grad():
        tokenizer.encoder.head[-1].bias.fill_(1e6)
    tokenizer.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="exceed float16, first encoder.head"):
        converting.native_to_half(tmp_path / "whole", tmp_path / "half")
