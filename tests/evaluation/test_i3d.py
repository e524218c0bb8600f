import json
from pathlib import Path

import pytest
import torch
from parity import weights_rule
from parity.compare import close

from nbp.evaluation.i3d import I3D, PORT_BN_EPS, TF_BN_EPS, Stem, Unit, load_i3d
from nbp.evaluation.networks import FeatureNetwork, run_network
from nbp.evaluation.protocols import get_protocol, prepare

PARITY = Path(__file__).parents[1] / "parity"
SHAPES = json.loads((PARITY / "i3d_keys.json").read_text())["shapes"]

# Logits 0..7 of the real weights with each constant, for weights_rule.video(51, 1, 9, 64, 64) under the quickstart
# protocol. Regenerate: PYTHONPATH=tests python tests/evaluation/test_i3d.py
PINNED = {
    TF_BN_EPS: [0.124148, 6.256971, 2.688032, 4.500776, -0.569547, 1.779184, -0.502696, -0.7686],
    PORT_BN_EPS: [0.123683, 6.264948, 2.689305, 4.507318, -0.569737, 1.782695, -0.505273, -0.772896],
}


def frames_of(video):
    return video.permute(0, 2, 3, 4, 1)


def test_keys_are_the_ports():
    assert {name: list(tensor.shape) for name, tensor in I3D().state_dict().items()} == SHAPES


@torch.inference_mode()
def test_folding_keeps_the_network():
    model = I3D(TF_BN_EPS)
    model.load_state_dict(weights_rule.state_dict(SHAPES))
    video = 2 * weights_rule.video(3, 1, 9, 224, 224) - 1
    before = model(video)
    assert torch.allclose(model.fold()(video), before, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.inference_mode()
def test_company_changes_no_bit(precision):
    """A clip has the same features in batches of any size."""
    model = I3D(TF_BN_EPS)
    model.load_state_dict(weights_rule.state_dict(SHAPES))
    network = FeatureNetwork("i3d-tf", model.fold(), "0" * 64)
    video = 2 * weights_rule.video(5, 3, 9, 224, 224) - 1
    together = run_network(network, video, precision)
    assert torch.equal(torch.cat([run_network(network, part, precision) for part in video.split(2)]), together)


@pytest.mark.parametrize("make", [lambda: Unit(5, 8, 3, TF_BN_EPS), lambda: Stem(8, TF_BN_EPS)])
def test_convolutions_are_pytorchs(make):
    """Whatever computes them: also in bfloat16, which rounds products and the result, and with gradients."""
    unit = make().eval()
    x = torch.randn(1, unit.conv3d.in_channels, 9, 9, 9, requires_grad=True)
    expected = unit.conv3d(x)
    got = unit._convolve(x)
    assert torch.allclose(got, expected, atol=1e-5)
    [gradient], [due] = [torch.autograd.grad((y ** 2).sum(), x) for y in (got, expected)]
    assert torch.allclose(gradient, due, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = unit._convolve(x)
        assert rough.dtype == torch.bfloat16 and torch.allclose(rough, unit.conv3d(x), rtol=2 ** -7, atol=1e-3)
    assert not torch.equal(rough.float(), expected)


@pytest.mark.parametrize("bn_eps", PINNED)
@torch.inference_mode()
def test_pinned_logits_of_the_real_weights(bn_eps, i3d_path):
    close(f"i3d real weights, eps {bn_eps:g}", real_logits(i3d_path, bn_eps), PINNED[bn_eps], 1e-5)


def real_logits(path, bn_eps):
    """The first 8 logits."""
    frames = frames_of(weights_rule.video(51, 1, 9, 64, 64))
    return load_i3d(path, bn_eps)(prepare(frames, get_protocol("quickstart")))[0, :8]


def test_wrong_input_is_refused():
    model = I3D()
    with pytest.raises(ValueError, match=r"\(B,3,T,224,224\)"):
        model(torch.zeros(1, 3, 9, 64, 64))
    with pytest.raises(ValueError, match="8 frames; the I3D needs at least 9"):
        model(torch.zeros(1, 3, 8, 224, 224))


def test_other_weights_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt does not hold the weights of the I3D"):
        load_i3d(tmp_path / "other.pt")
    for junk in (b"junk", b"", bytes(100), b"e\x80"):
        (tmp_path / "junk.pt").write_bytes(junk)
        with pytest.raises(ValueError, match="junk.pt is truncated or not a torch checkpoint") as caught:
            load_i3d(tmp_path / "junk.pt")
        assert "weights_only" not in str(caught.value), "torch's advice to read the file unsafely"
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.safetensors cannot be read as a safetensors file"):
        load_i3d(tmp_path / "junk.safetensors")


def test_loading_leaves_random_numbers_alone_and_does_not_depend_on_the_default_dtype(tmp_path):
    torch.save(I3D(TF_BN_EPS).state_dict(), tmp_path / "i3d.pt")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    want = load_i3d(tmp_path / "i3d.pt").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_default_dtype(torch.float64)
    try:
        found = load_i3d(tmp_path / "i3d.pt").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    assert all(tensor.dtype == torch.float32 for name, tensor in found.items())


if __name__ == "__main__":
    from nbp.hub.fetch import fetch_i3d

    with torch.inference_mode():
        for bn_eps in PINNED:
            print(bn_eps, [round(x, 6) for x in real_logits(fetch_i3d(), bn_eps).tolist()])
