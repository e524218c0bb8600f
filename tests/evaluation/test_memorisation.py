import json

import numpy as np
import pytest

from nbp import evaluate, memorisation
from nbp.evaluation.features import Clips

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def test_copies_are_found(network, protocol, make_frames, tmp_path):
    train, real = make_frames(40, 0), make_frames(40, 1)
    copies = train[10:30].copy()
    copies[:, 0, 0, 0] = 0
    fakes = {"copies": copies, "new": make_frames(20, 2)}
    sets = {name: Clips.from_array(name, frames) for name, frames in ({"train": train, "real": real} | fakes).items()}
    found = {name: memorisation.memorisation(sets["train"], sets["real"], sets[name], protocol, network, tmp_path)
             for name in fakes}
    assert {pair[0]: pair[1] for pair in found["copies"]["pairs"]} == {number: number + 10 for number in range(20)}
    assert found["copies"]["share_below_threshold"] == 1 and found["new"]["share_below_threshold"] < 0.2
    assert found["copies"]["fvd_train"] < found["copies"]["fvd_real"]
    distances = [pair[2] for pair in found["copies"]["pairs"]]
    assert distances == sorted(distances) and found["copies"]["clips_of_each_real_set"] == 40
    with pytest.raises(ValueError, match="real set train and fake set train have the same content"):
        memorisation.memorisation(sets["train"], sets["train"], sets["new"], protocol, network, tmp_path)


def test_command(monkeypatch, network, make_frames, tmp_path, capsys):
    from PIL import Image

    monkeypatch.setattr(evaluate, "load_network", lambda *_: network)
    monkeypatch.setattr(evaluate, "fetch_i3d", lambda folder: "none")
    for seed, name in enumerate(("train", "val", "a", "b")):
        np.save(tmp_path / f"{name}.npy", make_frames(12, seed))
    train, val, a, b = (str(tmp_path / f"{name}.npy") for name in ("train", "val", "a", "b"))
    evaluate.main(["--real", val, "--fake", a, b, "--train", train, "--protocol", "quickstart", "--out",
                   str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu", "--no-intervals"])
    printed = capsys.readouterr().out
    for number, name in enumerate((a, b)):
        report = json.loads((tmp_path / "out" / f"memorisation_{number}.json").read_text())
        assert report["sets"]["fake"]["name"] == name and f"memorisation {name}" in printed
        assert f"fvd to training clips {report['fvd_train']:.4g}" in printed
        assert Image.open(tmp_path / "out" / f"memorisation_{number}.png").height == 24 * 18
