"""The table that a training run begins with."""

import re

import pytest
import torch

from nbp import train
from nbp.planning import start
from nbp.training.flops import GPUS


def test_a_run_begins_with_what_will_be_trained(tokenizer_run, tmp_path, capsys):
    train.main(["tests/fixtures/runs/tokenizer.yaml", *tokenizer_run(tmp_path / "run", "trainer.accumulate=2")])
    title, *rows = capsys.readouterr().out.splitlines()[:7]
    rows = dict(re.split(r"\s{2,}", row.strip(), maxsplit=1) for row in rows)
    assert title == f"tokenizer -> {tmp_path / 'run'}"
    trained, parts = rows["parameters"].split(" M trained; ")
    assert sum(float(count) for count in re.findall(r"[\d.]+", parts)) == pytest.approx(float(trained), abs=0.02)
    assert rows["data"].endswith("17 frames of 32x32; 8 clips, 3.0 epochs"), "6 steps of 2 x 2 clips"
    assert rows["batch"] == "4 = 2 clips x 1 devices x 1 nodes x 2 accumulated"
    assert rows["steps"].startswith("6, ") and rows["memory"].endswith("auto, 32-true")
    assert re.fullmatch(r"[\d.]+ minutes by the plan, at 80% of the \d+ GFLOP/s of matrix products here", rows["time"])


def test_a_known_gpu_is_taken_from_its_data_sheet(monkeypatch, load_tokenizer_run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert start.this_device(True) == (GPUS["h200-141g"], 0.4, "NVIDIA H200's peak rate")
    text = start.start_table(load_tokenizer_run("trainer.devices=2"))
    assert "ddp, 32-true" in text and "at 40% of NVIDIA H200's peak rate" in text


def test_the_measured_rate_is_that_of_a_product(monkeypatch):
    times = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(start, "NUM_PRODUCTS", 3)
    monkeypatch.setattr(start.time, "perf_counter", lambda: next(times))
    assert start.product_rate(torch.float32) == 2 * 512 ** 3 / 2
