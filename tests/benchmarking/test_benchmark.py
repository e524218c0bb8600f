import itertools
import json

import numpy as np
import pytest
import torch

from nbp import benchmark
from nbp.benchmarking import evaluation, timing
from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.evaluation.features import Clips
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import get_protocol
from nbp.generator.model import Generator
from nbp.hub.fetch import fetch_i3d
from nbp.tokenizer.model import Tokenizer


def test_figures_are_those_of_the_two_runs(monkeypatch):
    clips = Clips.from_array("set", np.random.default_rng(0).integers(0, 256, (5, 9, 16, 16, 3), dtype=np.uint8))
    clock = iter([0, 2, 2, 6, 6, 7, 7, 17])   # forward 2 s, extraction 4 s; then 1 s and 10 s
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    network = FeatureNetwork("i3d-tf", torch.nn.AdaptiveAvgPool3d(1), "0")
    network.module.forward = lambda video: video.mean((2, 3, 4))
    got = evaluation.compare(clips, network, get_protocol("quickstart"), 2, 0, repeats=2)
    assert got == {"forward_clips_per_s": 5.0, "extraction_clips_per_s": 1.25, "lost": 0.75}


@pytest.mark.parametrize("named", [["sampling"], []])
def test_sampling_counts_steps_and_may_be_left_out(tmp_path, monkeypatch, capsys, named):
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig([8, 8], [1, 1], [[2, 2, 2]], [4, 4])).save_pretrained(tmp_path / "tokenizer")
    Generator(GeneratorConfig(1, 1, 16, 16, [2, 2, 2], [1, 1, 2], "label", "plain", num_condition_ids=2,
                              condition_len=1)
              ).save_pretrained(tmp_path / "generator")
    ticks = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    benchmark.main([*named, "--generator", str(tmp_path / "generator"), "--tokenizer", str(tmp_path / "tokenizer"),
                    "--device", "cpu", "--repeats", "1", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["next_block"] == {"block_shape": [1, 1, 2], "num_steps": 4, "seconds": 1}
    assert figures["next_token"] == {"block_shape": [1, 1, 1], "num_steps": 8, "seconds": 1}
    assert (figures["speedup"], figures["decode_s"], figures["device"]) == (1, 1, "cpu")
    assert "next-block prediction is 1.00 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["evaluation", "--generator", "a"], ["speed"]])
def test_a_benchmark_that_is_not_there_is_refused(arguments):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)


@pytest.mark.slow
def test_extraction_keeps_the_network_busy(tmp_path):
    benchmark.main(["evaluation", "--max-clips", "12", "--batch-size", "4", "--repeats", "3", "--device", "cpu",
                    "--weights", str(fetch_i3d()), "--out", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text())["lost"] <= 0.10
