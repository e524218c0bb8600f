import json
from pathlib import Path

import pytest
import torch
from parity import weights_rule
from parity.compare import close

from nbp.evaluation.i3d import I3D, PORT_BN_EPS, TF_BN_EPS, load_i3d
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


if __name__ == "__main__":
    from nbp.fetch import fetch_i3d

    with torch.inference_mode():
        for bn_eps in PINNED:
            print(bn_eps, [round(x, 6) for x in real_logits(fetch_i3d(), bn_eps).tolist()])
