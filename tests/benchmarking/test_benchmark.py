import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nbp import benchmark
from nbp.benchmarking import evaluation, growth, sampling
from nbp.benchmarking.machine import Machine, in_turns, line
from nbp.benchmarking.training import RECIPES, recipe_line
from nbp.config import GeneratorConfig, TokenizerConfig, load_run
from nbp.evaluation.features import Clips
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import get_protocol
from nbp.generator.model import Generator
from nbp.hub.fetch import fetch_i3d
from nbp.system import timing
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
    assert [row["lookahead"] for row in figures["lookahead"]] == [1, 2, 4, 8]
    assert figures["lookahead"][0]["passes"] == 4 > figures["lookahead"][-1]["passes"] >= 2
    assert all(row["equal"] == 4 and row["seconds"] == 1 / 4 for row in figures["lookahead"])
    assert (figures["speedup"], figures["decode_s"], figures["device"]) == (1, 1, "cpu")
    assert "next-block prediction is 1.00 times as fast" in capsys.readouterr().out


MACHINE = Machine("any", 2, "2", bandwidth=10.0, rate={"float32": 4.0, "bfloat16": 8.0})


def test_ratios_of_a_line():
    assert MACHINE.floor_s(20, 40, "float32") == 10 and MACHINE.floor_s(20, 8, "bfloat16") == 2
    assert line("a", 2.0, "b", 6.0, 0.5, same=True) == {
        "what": "a", "seconds": 2.0, "against": "b", "against_s": 6.0, "times_as_fast": 3.0, "floor_s": 0.5,
        "times_the_floor": 4.0, "facts": {"same": True}}


def test_turns_alternate_and_the_best_counts(monkeypatch):
    clock = iter([0, 5, 5, 6, 6, 8, 8, 15])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    called = []
    assert in_turns({name: lambda name=name: called.append(name) for name in "ab"}, 2) == {"a": 2, "b": 1}
    assert called == list("abab")


def test_the_floor_of_a_clip_counts_weights_and_cache():
    case = sampling.Case("", [1, 1, 4], block=2)
    model = sampling.make_generator(case, "smoke", "cpu")
    layers, head, cached = 12 * 2 * 32 ** 2, 32 * 500, 2 * 2 * 32
    want = sum(4 * (layers + head + cached * (1 + end)) / 10 for end in (2, 4))
    assert sampling.floor_s(case, model, dataclasses.replace(MACHINE, rate={"float32": 1e9}), "float32") == want


@pytest.mark.parametrize("what, words", [
    (["sampling"], "16 tokens one by one, float32"), (["training", "--recipes"], "memory of a step, batch 4"),
    (["tokenizer"], "33 frames of 64x64 in chunks"), (["data"], "4 clips of 17x32x32 from mp4"),
    (["growth"], "1248 cached positions")])
def test_each_benchmark_in_miniature(tmp_path, capsys, what, words, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    benchmark.main([*what, "--size", "smoke", "--device", "cpu", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["name"] in capsys.readouterr().out
    assert all(rate > 0 for rate in figures["machine"]["rate"].values()) and figures["machine"]["bandwidth"] > 0
    lines = {made["what"]: made for made in figures["lines"]}
    assert any(words in name for name in lines)
    for made in lines.values():
        facts = made.get("facts", {})
        assert facts.get("same_tokens", True) and facts.get("gradient_cosine", 1) > 0.99
        assert facts.get("largest_pixel_error", 0) < 1e-5 and facts.get("share_of_the_official", 0) < 0.6


def test_memory_is_flat_in_the_number_of_frames(tmp_path):
    few, many = (growth.stream_bytes(count) for count in (65, 257))
    assert many <= 1.02 * few
    growth.draw({"frames": [(17, 1e6), (33, 1e6)], "clips": [(1, 0.1), (2, 0.2)]}, tmp_path / "plots.png")
    assert (tmp_path / "plots.png").stat().st_size > 1000


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_share_of_a_recipe(recipe, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    run = load_run(recipe)
    if recipe == RECIPES[0]:
        run = dataclasses.replace(run, curriculum=[dataclasses.replace(run.curriculum[0], batch_size=1, num_frames=5)])
    else:
        run = dataclasses.replace(run, batch_size=1)
    machine = dataclasses.replace(MACHINE, rate={"float32": 1e9})
    made = recipe_line(recipe, run, machine, 1, "cpu")
    assert made["facts"]["share_of_matrix_rate"] == pytest.approx(made["floor_s"] / made["seconds"])


def test_half_a_pair_of_models_is_refused():
    with pytest.raises(ValueError, match="go together"):
        benchmark.main(["--generator", "a"])


@pytest.mark.parametrize("arguments", [[], ["evaluation", "--generator", "a"], ["speed"]])
def test_a_benchmark_that_is_not_there_is_refused(arguments):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)


@pytest.mark.slow
def test_extraction_is_measured_beside_the_bare_network(tmp_path):
    benchmark.main(["evaluation", "--max-clips", "4", "--batch-size", "2", "--repeats", "1", "--device", "cpu",
                    "--weights", str(fetch_i3d()), "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["clips"] == 4 and figures["protocol"] == "tats-2048"
    assert figures["lost"] == pytest.approx(1 - figures["extraction_clips_per_s"] / figures["forward_clips_per_s"])
