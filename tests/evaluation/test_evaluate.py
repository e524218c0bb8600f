import json

import numpy as np
import pytest

from nbp import evaluate

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


@pytest.fixture
def fast(monkeypatch, network):
    """The command with a network that needs no weights."""
    monkeypatch.setattr(evaluate, "load_network", lambda *_: network)
    monkeypatch.setattr(evaluate, "fetch_i3d", lambda folder: "none")


def test_command(fast, make_frames, tmp_path, capsys):
    for name, seed in (("real", 0), ("fake", 1), ("other", 2)):
        np.save(tmp_path / f"{name}.npy", make_frames(12, seed))
    real, fake, other = (str(tmp_path / f"{name}.npy") for name in ("real", "fake", "other"))
    arguments = ["--real", real, "--fake", fake, other, "--protocol", "quickstart", "--set", "frames=9",
                 "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    reports = evaluate.main(arguments)
    printed = capsys.readouterr().out
    assert "protocol   quickstart+frames=9" in printed and "network = i3d-tf" in printed and "| fvd |" in printed
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == reports and len(reports) == 2
    assert evaluate.main(arguments)[0]["scores"] == reports[0]["scores"]


def test_command_refuses(fast, make_frames, tmp_path):
    np.save(tmp_path / "real.npy", make_frames(12, 0))
    real = str(tmp_path / "real.npy")
    common = ["--real", real, "--fake", real, "--cache", str(tmp_path / "c"), "--device", "cpu", "--protocol"]
    with pytest.raises(ValueError, match="have the same content"):
        evaluate.main([*common, "quickstart"])
    with pytest.raises(ValueError, match="unknown protocol 'quickstrat'"):
        evaluate.main([*common, "quickstrat"])
    with pytest.raises(ValueError, match="'num_frames' is not of the form field=value"):
        evaluate.main([*common, "quickstart", "--set", "num_frames"])


def test_styleganv_weights_are_the_users(tmp_path):
    options = evaluate.parse(["--real", "a", "--fake", "b", "--protocol", "larp", "--ckpt", str(tmp_path)])
    protocol = evaluate.choose_protocol(options)
    assert evaluate.weights_path(protocol, options) == tmp_path / "i3d_torchscript.pt"
