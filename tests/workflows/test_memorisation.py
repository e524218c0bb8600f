import json

import numpy as np
import pytest

from nbp import evaluate
from nbp.data.annotations import write_lists
from nbp.data.video_io import write_video
from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.scoring import evaluate_sets
from nbp.workflows import memorisation, scoring_sets

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def test_copies_are_found(network, protocol, make_frames, tmp_path):
    train, real = make_frames(40, 0), make_frames(40, 1)
    copies = train[10:30].copy()
    copies[:, 0, 0, 0] = 0
    fakes = {"copies": copies, "new": make_frames(20, 2)}
    sets = {name: Clips.from_array(name, frames) for name, frames in ({"train": train, "real": real} | fakes).items()}
    found = {name: memorisation.memorisation(sets["train"], sets["real"], sets[name], protocol, network,
                                             Extraction(tmp_path))
             for name in fakes}
    assert {pair[0]: pair[1] for pair in found["copies"]["pairs"]} == {number: number + 10 for number in range(20)}
    assert found["copies"]["share_below_threshold"] == 1 and found["new"]["share_below_threshold"] < 0.2
    assert found["copies"]["fvd_train"] < found["copies"]["fvd_real"]
    distances = [pair[2] for pair in found["copies"]["pairs"]]
    assert distances == sorted(distances) and found["copies"]["clips_of_each_real_set"] == 40
    with pytest.raises(ValueError, match="training set train and held-out set train have the same content"):
        memorisation.memorisation(sets["train"], sets["train"], sets["new"], protocol, network, Extraction(tmp_path))


def test_distances_are_those_of_a_score(network, protocol, make_frames, tmp_path):
    """Clips are chosen, counted and named as for a score."""
    train, real, fake = (Clips.from_array(str(seed), make_frames(count, seed))
                         for seed, count in enumerate((16, 12, 33)))
    protocol = protocol.replace(num_fake=10, repeats=2)
    report = memorisation.memorisation(train, real, fake, protocol, network, Extraction(tmp_path))
    [scored] = evaluate_sets(real, [fake], protocol, network, Extraction(tmp_path))
    assert report["fvd_real"] == scored["scores"]["fvd"] and report["protocol"] == scored["protocol"]
    protocol = protocol.replace(num_fake=20, num_real=14)
    fewer = memorisation.memorisation(train, real, fake, protocol, network, Extraction(tmp_path))
    assert fewer["protocol"] == "test+fake=20+repeats=1+real=12" and len(fewer["pairs"]) == 33


def test_command(monkeypatch, network, make_frames, tmp_path, capsys):
    from PIL import Image

    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
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


@pytest.fixture
def data_config(make_frames, tmp_path):
    """A data config with 12 training and 10 validation videos."""
    rows = {}
    for split, count, seed in (("train", 12, 1), ("val", 10, 2)):
        rows[split] = [(f"{split}/{number}.mp4", "a") for number in range(count)]
        for (name, _), clip in zip(rows[split], make_frames(count, seed)):
            write_video(tmp_path / "videos" / name, clip, 8)
    write_lists(tmp_path / "videos", rows["train"], rows["val"])
    path = tmp_path / "data.yaml"
    path.write_text(f"name: test\nroot: {tmp_path / 'videos'}\ntrain_list: train.txt\nval_list: val.txt\n"
                    "resolution: 16\nnum_frames: 9\n")
    return str(path)


def test_training_and_held_out_list_of_a_data_config(monkeypatch, network, make_frames, data_config, tmp_path):
    """Also where the protocol itself scores against the training list."""
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: FeatureNetwork("i3d-port", network.module, "0"))
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    np.save(tmp_path / "fake.npy", make_frames(12, 5))
    for protocol in ("tats-2048", "nbp-rfvd"):
        evaluate.main(["--real", data_config, "--fake", str(tmp_path / "fake.npy"), "--train", data_config,
                       "--protocol", protocol, "--set", "frames=9", "clips_per_video=1", "--allow-fewer",
                       "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu",
                       "--no-intervals"])
        report = json.loads((tmp_path / "out" / "memorisation.json").read_text())
        sets = report["sets"]
        assert (sets["train"]["name"], sets["train"]["clips"]) == (f"{data_config}:train", 12)
        assert (sets["real"]["name"], sets["real"]["clips"]) == (f"{data_config}:val", 10)
        assert report["fvd_train"] != report["fvd_real"] and report["clips_of_each_real_set"] == 10


def test_training_set_that_is_the_held_out_one_is_refused_before_scoring(monkeypatch, network, make_frames, tmp_path):
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    for seed, name in enumerate(("real", "fake")):
        np.save(tmp_path / f"{name}.npy", make_frames(12, seed))
    real, fake = (str(tmp_path / f"{name}.npy") for name in ("real", "fake"))
    for train, message in ((real, "training set .* and held-out set .* the same content"),
                           (fake, "training set .* and fake set .* the same content")):
        with pytest.raises(ValueError, match=message):
            evaluate.main(["--real", real, "--fake", fake, "--train", train, "--protocol", "quickstart", "--out",
                           str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_pairs_of_several_sizes_are_pictured_at_one(network, protocol, make_frames, tmp_path):
    protocol = protocol.replace(resolution=8)
    train, real, fake = (Clips.from_array(str(seed), make_frames(12, seed)) for seed in range(3))
    larger = Clips.from_array("larger", np.repeat(np.repeat(make_frames(12, 0), 2, 2), 2, 3))
    report = memorisation.memorisation(larger, real, fake, protocol, network, Extraction(tmp_path))
    assert memorisation.write_report(report, larger, fake, tmp_path, "memorisation").stat().st_size > 0
    assert larger.pixels(0).shape[1] == 2 * train.pixels(0).shape[1]
