"""Metrics against recorded outputs of the official code (tests/parity); the I3D has rule-made weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import weights_rule
from parity.compare import close

from nbp.evaluation import quality
from nbp.evaluation.fvd import frechet_distance
from nbp.evaluation.i3d import PORT_BN_EPS, load_i3d
from nbp.evaluation.protocols import get_protocol, prepare

PARITY = Path(__file__).parent
SHAPES = json.loads((PARITY / "i3d_keys.json").read_text())["shapes"]


def frames_of(video):
    return video.permute(0, 2, 3, 4, 1)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The port's I3D with rule-made weights, from a PyTorch state dict file."""
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(weights_rule.state_dict(SHAPES), path)
    return load_i3d(path, PORT_BN_EPS)


@pytest.mark.parametrize("case, protocol, seed", [
    ("nbp", "nbp-rfvd+frames=16", (21, 2, 16, 48, 64)),
    ("videogpt", "crop", (21, 2, 16, 48, 64)),
    ("styleganv", "nbp-gfvd-ucf", (21, 2, 16, 48, 64)),
])
def test_preprocessing_is_the_official(case, protocol, seed):
    cropped = get_protocol("nbp-rfvd+frames=null").replace(fit="crop")
    protocol = cropped if protocol == "crop" else get_protocol(protocol)
    got = prepare(frames_of(weights_rule.video(*seed)), protocol)[:, :, [0, 5, 10, 15], ::16, ::16]
    close(f"i3d pre_{case}", got, np.load(PARITY / "i3d.npz")[f"pre_{case}"], 1e-6)


@torch.inference_mode()
def test_logits_are_the_official(port):
    recorded, squash = np.load(PARITY / "i3d.npz"), get_protocol("nbp-rfvd+frames=null")
    crop = squash.replace(fit="crop")
    frames = frames_of(weights_rule.video(21, 2, 16, 48, 64))
    assert int((frames * 255).to(torch.uint8).long().sum()) == recorded["u8_sum"], "other input than was recorded"
    cases = {"logits_nbp": (port, frames, squash), "logits_videogpt": (port, frames, crop),
             "logits_10frames": (port, frames[:1, :10], crop),
             "logits_17frames": (port, frames_of(weights_rule.video(23, 1, 17, 32, 32)), squash),
             "pooled_feature_mean": (port.features, frames[:1], crop)}
    for name, (function, clips, protocol) in cases.items():
        close(f"i3d {name}", function(prepare(clips, protocol)), recorded[name], 1e-5)


@pytest.mark.filterwarnings("ignore:the .* set has only")
@pytest.mark.parametrize("case", ["small", "rankdef"])
def test_frechet_distance(case):
    recorded = np.load(PARITY / "frechet.npz")
    a, b = recorded[f"{case}_a"], recorded[f"{case}_b"]
    before = a.copy(), b.copy()
    first, second = frechet_distance(a, b), frechet_distance(a, b)
    for variant in ("nbp", "videogpt", "styleganv"):
        # Where a covariance is singular, StyleGAN-V's sqrtm is itself 6e-8 away from the other two.
        exact = 1e-7 if (case, variant) == ("rankdef", "styleganv") else 1e-8
        close(f"frechet {case} {variant}", first, recorded[f"{case}_{variant}_f64"], exact)
        # The official float32: 1.3e-5 from its own float64 where a covariance is singular.
        close(f"frechet {case} {variant} float32", first, recorded[f"{case}_{variant}_f32"],
              1e-5 if case == "small" else 2e-5)
    assert 0 < first < float("inf")
    # The official covariance centres its caller's features in place: its second call gives another distance.
    assert first == second != pytest.approx(float(recorded[f"{case}_videogpt_second_call_same_tensors"]))
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])
    assert frechet_distance(b, a) == pytest.approx(first, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_psnr_and_ssim():
    recorded = np.load(PARITY / "psnr_ssim.npz")
    x, y = noisy(weights_rule.video(41, 2, 4, 48, 64), 42)
    image = x[:, :, :1], y[:, :, :1]
    for name in ("psnr_video", "psnr_zero_mean"):
        close(name.replace("_", " "), quality.psnr(y, x), recorded[name], 1e-5)
    close("psnr image", quality.psnr(*image), recorded["psnr_image"], 1e-5)
    close("ssim video", quality.ssim(y, x), recorded["ssim_video"], 1e-5)
    close("ssim image", quality.ssim(*image), recorded["ssim_image"], 1e-5)
    for name, pixels in (("x_sub8", x), ("y_sub8", y)):
        assert np.array_equal(pixels[..., ::8, ::8], recorded[name]), "other input than was recorded"
    assert np.array_equal(quality.psnr(x, x), recorded["psnr_identical"])
    assert np.isnan(recorded["msssim_small"]).all()
    with pytest.raises(ValueError, match="MS-SSIM needs frames of at least 161 pixels"):   # the official gives NaN
        quality.ms_ssim(y, x)
    x, y = noisy(weights_rule.video(43, 1, 2, 256, 256), 44)
    close("ssim 256", quality.ssim(y, x), recorded["ssim_256"], 1e-5)
    close("ms-ssim 256", quality.ms_ssim(y, x), recorded["msssim_256"], 1e-5)


def noisy(video, seed):
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    return video, (video + 0.08 * noise).clamp(0, 1)
