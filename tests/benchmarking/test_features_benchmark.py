import json

import pytest

from nbp.benchmarking import features
from nbp.hub.fetch import fetch_i3d


def test_figures_are_those_of_the_two_runs(monkeypatch):
    import numpy as np
    import torch

    from nbp.evaluation.features import Clips
    from nbp.evaluation.networks import FeatureNetwork
    from nbp.evaluation.protocols import get_protocol

    clips = Clips.from_array("set", np.random.default_rng(0).integers(0, 256, (5, 9, 16, 16, 3), dtype=np.uint8))
    clock = iter([0, 2, 2, 6, 6, 7, 7, 17])   # forward 2 s, extraction 4 s; then 1 s and 10 s
    monkeypatch.setattr(features.time, "perf_counter", lambda: next(clock))
    network = FeatureNetwork("i3d-tf", torch.nn.AdaptiveAvgPool3d(1), "0")
    network.module.forward = lambda video: video.mean((2, 3, 4))
    got = features.compare(clips, network, get_protocol("quickstart"), 2, 0, repeats=2)
    assert got == {"forward_clips_per_s": 5.0, "extraction_clips_per_s": 1.25, "lost": 0.75}


@pytest.mark.slow
def test_extraction_keeps_the_network_busy(tmp_path, capsys):
    results = features.main(["--max-clips", "12", "--batch-size", "4", "--repeats", "3", "--device", "cpu",
                                       "--weights", str(fetch_i3d()), "--out", str(tmp_path / "figures.json")])
    print(capsys.readouterr().out)
    assert json.loads((tmp_path / "figures.json").read_text()) == results
    assert results["lost"] <= 0.10
