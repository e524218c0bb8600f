"""A run that is killed again and again ends exactly as one that was never disturbed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from killing import Killer, random_kills, train_in_a_fork

from nbp.generator.model import Generator
from nbp.tokenizer.model import Tokenizer
from nbp.training import checkpoints
from nbp.training.metrics_log import read_metrics

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"
COMPARED = ("train/loss", "val/loss", "val/psnr", "train/grad_norm_0")


def kill_and_resume(arguments, out, killers):
    """Run, be killed, run again; at last to the end. Returns the number of kills."""
    kills = 0
    for killer in killers:
        code, text = train_in_a_fork(arguments, killer)
        assert code == -signal.SIGKILL, text[-3000:]
        kills += 1
        for path in (out / "checkpoints").glob("step*"):
            assert checkpoints.find_damage(path) is None, "half a checkpoint under its final name"
    code, text = train_in_a_fork(arguments)
    assert code == 0, text[-3000:]
    assert not list((out / "checkpoints").glob(".*")), "leftovers of killed writes"
    return kills


def same_run(one, other, model):
    """Both runs logged the same values at the same steps, bit for bit, and ended with the same weights."""
    whole, killed = read_metrics(one), read_metrics(other)
    for column in COMPARED:
        assert killed.get(column) == whole.get(column), column
    state, found = (model.from_pretrained(out / "model").state_dict() for out in (one, other))
    return all(torch.equal(state[name], found[name]) for name in state)


def test_three_kills(generator_run, tmp_path):
    more = ("trainer.val_samples=0", "trainer.accumulate=2", "max_steps=8")
    code, text = train_in_a_fork([GENERATOR, *generator_run(tmp_path / "whole", *more)])
    assert code == 0, text[-3000:]
    killers = [Killer(1, "write"), Killer(3, 0.0), Killer(1, "write")]
    out = tmp_path / "killed"
    assert kill_and_resume([GENERATOR, *generator_run(out, *more)], out, killers) == 3
    assert same_run(tmp_path / "whole", out, Generator)


@pytest.mark.slow(seconds=180)
def test_twenty_kills_of_a_generator(generator_run, tmp_path):
    more = ("trainer.val_samples=0", "max_steps=240")
    assert train_in_a_fork([GENERATOR, *generator_run(tmp_path / "whole", *more)])[0] == 0
    out = tmp_path / "killed"
    assert kill_and_resume([GENERATOR, *generator_run(out, *more)], out, random_kills(20)) == 20
    assert same_run(tmp_path / "whole", out, Generator)


@pytest.mark.slow(seconds=180)
def test_twenty_kills_of_a_tokenizer(tokenizer_run, tmp_path):
    more = ("trainer.val_samples=0", "loss.lecam=0.001", "trainer.ema_decay=0.9",
            "curriculum=[{steps: 60, num_frames: 1, batch_size: 2}, {steps: 80, num_frames: 5, batch_size: 2}]")
    assert train_in_a_fork([TOKENIZER, *tokenizer_run(tmp_path / "whole", *more)])[0] == 0
    out = tmp_path / "killed"
    assert kill_and_resume([TOKENIZER, *tokenizer_run(out, *more)], out, random_kills(20, seed=1)) == 20
    assert same_run(tmp_path / "whole", out, Tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_1", "deepspeed_3"])
def test_kills_of_two_processes_under_deepspeed(generator_run, tmp_path, strategy):
    more = ("trainer.val_samples=0", f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.ema_decay=0",
            "max_steps=12")

    def launch(out, *kill):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                   "tests/training/killing.py", *kill, GENERATOR, *generator_run(out, *more)]
        paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
                              timeout=1800)

    whole = launch(tmp_path / "whole", "0", "never", "0")
    assert whole.returncode == 0, whole.stderr[-3000:]
    out = tmp_path / "killed"
    for kill in (("3", "0.0", "1"), ("0", "write", "0"), ("2", "write", "1")):
        result = launch(out, *kill)
        assert result.returncode != 0 and "SIGKILL" in result.stderr, result.stderr[-3000:]
        for path in (out / "checkpoints").glob("step*"):
            assert checkpoints.find_damage(path) is None
    assert launch(out, "0", "never", "0").returncode == 0
    assert read_metrics(out)["train/loss"] == read_metrics(tmp_path / "whole")["train/loss"]
