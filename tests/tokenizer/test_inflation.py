"""An inflated image tokenizer: images as before, every sampled frame of a video as if it were an image."""

import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.inflation import inflate
from nbp.tokenizer.model import Tokenizer

STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(strides=STRIDES, seed=0, units="published", patch=(1, 1, 1)):
    torch.manual_seed(seed)
    config = TokenizerConfig(widths=[8, 8, 16, 16], num_res_blocks=[1, 1, 1, 1], strides=strides, fsq_levels=[5, 5, 5],
                             units=units, patch=list(patch))
    return Tokenizer(config).eval()


@pytest.fixture
def video():
    torch.manual_seed(1)
    return torch.rand(2, 3, 9, 16, 16)


def image_reconstructions(tokenizer, video):
    """Each frame by itself, (B, 3, T, H, W)."""
    with torch.inference_mode():
        return torch.cat([tokenizer(video[:, :, t:t + 1])[0] for t in range(video.shape[2])], 2)


@pytest.mark.parametrize("units", ["published", "full", "split"])
@pytest.mark.parametrize("source", ["trained on images", "strides that keep time", "2D kernels"])
def test_an_inflated_tokenizer_treats_frames_as_images(video, source, units):
    images = build(STRIDES if source == "trained on images" else [[1, 2, 2]] * 3, units=units)
    state = images.state_dict()
    if source == "2D kernels":
        kernels = {name for name, module in images.named_modules() if isinstance(module, torch.nn.Conv3d)}
        state = {name: tensor.sum(2) if name.removesuffix(".weight") in kernels and name.endswith("weight") else tensor
                 for name, tensor in state.items()}
    model = build(seed=2, units=units)
    model.load_state_dict(inflate(state, model))
    expected = image_reconstructions(images, video)
    torch.testing.assert_close(image_reconstructions(model, video), expected, rtol=0, atol=2e-5)
    with torch.inference_mode():
        found, indices = model(video)
        sampled = images(video[:, :, 4:5])[1]
    assert torch.equal(indices[:, 1:2], sampled)
    shown = [0, 4, 4, 4, 4, 8, 8, 8, 8]          # the next frame that the latent grid samples
    torch.testing.assert_close(found, expected[:, :, shown], rtol=0, atol=2e-5)


def test_the_past_taps_learn(video):
    model = build()
    model.load_state_dict(inflate(build(seed=3).state_dict(), model))
    conv = model.encoder.conv_in.conv
    assert not conv.weight[:, :, :2].any() and conv.weight[:, :, 2].any()
    (model(video)[0] - video).square().mean().backward()
    assert conv.weight.grad[:, :, :2].abs().sum() > 0


def test_patches_of_one_frame_inflate_and_those_of_several_are_refused(video):
    images, model = (build([[1, 1, 1], [2, 2, 2], [2, 2, 2]], seed, "split", (1, 2, 2)) for seed in (0, 2))
    model.load_state_dict(inflate(images.state_dict(), model))
    expected = image_reconstructions(images, video)
    with torch.inference_mode():
        torch.testing.assert_close(model(video)[0], expected[:, :, [0, 4, 4, 4, 4, 8, 8, 8, 8]], rtol=0, atol=2e-5)
    several = build([[1, 1, 1], [1, 2, 2], [1, 2, 2]], units="split", patch=(4, 2, 2))
    with pytest.raises(ValueError, match=r"model.patch is \[4, 2, 2\]; only patches of one frame"):
        inflate(several.state_dict(), several)


def test_what_does_not_inflate_is_refused():
    model, other = build(), build()
    state = other.state_dict()
    state["decoder.conv_in.conv.weight"] = state["decoder.conv_in.conv.weight"][:4]
    with pytest.raises(ValueError, match=r"images: decoder.conv_in.conv.weight of shape \(4, 3, 3, 3, 3\) does not"):
        inflate(state, model, "images")
    del state["encoder.conv_in.conv.bias"]
    with pytest.raises(ValueError, match="1 tensors of the tokenizer are missing, first encoder.conv_in.conv.bias"):
        inflate(state, model, "images")
