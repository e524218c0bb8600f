"""The guard: what it takes for trouble, and that a run goes back to its last good checkpoint some times at most."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diverging import Diverge
from killing import add_callback

from nbp import train
from nbp.training import fit
from nbp.training.guard import WARMUP, Guard
from nbp.training.metrics_log import read_metrics
from nbp.training.module import RollBack

TOKENIZER = "tests/fixtures/runs/tokenizer.yaml"
LONG = ("curriculum=[{steps: 40, num_frames: 1, batch_size: 2}]", "optim.lr=3e-4", "trainer.guard_patience=4",
        "trainer.val_samples=0", "trainer.val_every_steps=40", "trainer.checkpoint_every_steps=4")


def verdicts(values, **arguments):
    guard = Guard(patience=3, **arguments)
    found = []
    for row in values:
        guard.judge_step(row)
        found.append(guard.doubt)
    return found


def test_a_healthy_run_raises_no_doubt():
    rows = [{"reconstruction": 0.3 * 0.98 ** n + 0.01 * (n % 3), "discriminator": 2 - n / 200, "logit": n / 100,
             "logit_gap": 0.01 * n + 1e-5, "code_perplexity": 5 + n, "loss": 9 - n / 50} for n in range(100)]
    assert verdicts(rows) == [None] * 100


@pytest.mark.parametrize("name, healthy, wrong, meaning", [
    ("loss", 4.0, 8.1, "the loss has diverged"),
    ("reconstruction", 0.1, 0.6, "the reconstruction has diverged"),
    ("code_perplexity", 100.0, 2.0, "the codes have collapsed"),
    ("discriminator", 1.8, 500.0, "the discriminator has diverged"),
    ("logit", 0.5, 1e4, "the discriminator has diverged"),
    ("logit_gap", 0.3, 0.0, "the discriminator has collapsed"),
    ("loss", 4.0, math.nan, "loss is nan"),
])
def test_each_kind_of_trouble_is_named(name, healthy, wrong, meaning):
    found = verdicts([{name: healthy}] * (WARMUP + 5) + [{name: wrong}])
    assert found[:-1] == [None] * (WARMUP + 5) and meaning in found[-1]


def test_a_single_spike_is_forgotten_at_once():
    found = verdicts([{"discriminator": 2.0}] * 10 + [{"discriminator": 1e6}] + [{"discriminator": 2.0}] * 3)
    assert [doubt is not None for doubt in found] == [False] * 10 + [True] + [False] * 3


def test_steps_of_few_clips_may_differ_much_but_a_lasting_rise_is_found():
    """Losses of a small model of twelve games, two clips a step."""
    assert verdicts([{"loss": value} for value in [4.0, 2.5, 6.6, 3.0] * 20]) == [None] * 80
    risen = verdicts([{"loss": 3.0}] * (WARMUP + 5) + [{"loss": 5.6}] * 20)
    assert risen[WARMUP + 5] is None and "the loss has diverged" in risen[-1]


def test_another_clip_length_starts_the_references_anew():
    guard = Guard(patience=3)
    for _ in range(WARMUP + 5):
        guard.judge_step({"reconstruction": 0.01}, shape="(1 frame)")
    guard.judge_step({"reconstruction": 0.2}, shape="(5 frames)")
    assert guard.doubt is None


def test_a_single_doubtful_step_at_the_end_does_not_lose_the_run(tokenizer_run, tmp_path, monkeypatch):
    judge = Guard.judge_step

    def doubt_the_last(self, values, shape=""):
        judge(self, values, shape)
        self.judged = getattr(self, "judged", 0) + 1
        if self.judged == 6:
            self.doubt, self.num_wrong = "it looks odd", 1

    monkeypatch.setattr(Guard, "judge_step", doubt_the_last)
    train.main([TOKENIZER, *tokenizer_run(tmp_path, "trainer.val_samples=0")])
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "step0000006.ckpt"


@pytest.fixture
def inject(monkeypatch):
    def with_injection(*arguments):
        monkeypatch.setattr(fit, "BUILD", dict(fit.BUILD))
        add_callback(Diverge(*arguments))
    return with_injection


def test_an_injected_divergence_is_detected_and_rolled_back(tokenizer_run, tmp_path, inject, capsys):
    inject(21, 1)
    assert train.main([TOKENIZER, *tokenizer_run(tmp_path, *LONG)]) == 0
    text = capsys.readouterr().err
    assert "the discriminator has diverged" in text and "rollback 1 of at most 3 to" in text
    found = read_metrics(tmp_path)
    assert sorted(found["train/loss"]) == list(range(40))
    assert max(found["train/discriminator"][step] for step in range(21, 40)) < 3, "what was rolled back is overwritten"
    assert found["train/rollbacks"][39] == 1
    assert math.isfinite(found["train/loss"][39]) and (tmp_path / "model").is_dir()


def test_a_divergence_that_comes_back_ends_the_run_with_the_reason(tokenizer_run, tmp_path, inject, capsys):
    inject(21, 9)
    with pytest.raises(RuntimeError, match="the discriminator has diverged.*has been rolled back 2 times"):
        train.main([TOKENIZER, *tokenizer_run(tmp_path, *LONG, "trainer.max_rollbacks=2")])
    assert "rollback 2 of at most 2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_patience_counts_optimizer_steps():
    """With 4 micro-batches a step, one bad one among good ones is no trouble, and a bad step counts once."""
    trainer = SimpleNamespace(accumulate_grad_batches=4, global_step=0, is_global_zero=True)
    guard, module = Guard(patience=3), SimpleNamespace(watched_shape=(1,), mean_over_ranks=lambda values: values)
    healthy, spike, bad = {"loss": 4.0}, {"loss": 7.0}, {"loss": 100.0}
    steps = [[healthy] * 4] * (WARMUP + 5) + [[spike, *[healthy] * 3]] + [[bad] * 4] * 2
    for batch_idx, values in enumerate(value for step in steps for value in step):
        module.watched = {name: torch.tensor(value) for name, value in values.items()}
        guard.on_train_batch_end(trainer, module, None, None, batch_idx)
        if batch_idx < 4 * (WARMUP + 6):
            assert guard.doubt is None
    assert "the loss has diverged" in guard.doubt
    with pytest.raises(RollBack):
        for batch_idx in range(len(steps) * 4, len(steps) * 4 + 4):
            guard.on_train_batch_end(trainer, module, None, None, batch_idx)
    assert batch_idx % 4 == 3


def test_a_second_rollback_goes_further_back(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (10, 20):
        (folder / f"step{step:07d}.ckpt").touch()
    config = SimpleNamespace(out=tmp_path, max_rollbacks=3)

    def target(newest_written, started_from, rollbacks):
        callback = SimpleNamespace(newest_written=newest_written)
        trainer = SimpleNamespace(is_global_zero=False, checkpoint_callback=callback)
        return fit._roll_back(config, trainer, started_from, rollbacks, "reason")

    first, second = (str(folder / f"step{step:07d}.ckpt") for step in (10, 20))
    assert target(second, None, 1) == second, "the newest that the attempt wrote"
    assert target(None, second, 1) == second, "a resumed run that wrote none goes back to where it began"
    assert target(None, second, 2) == first, "trouble may have begun before it was written"
    assert target(None, first, 3) == first
    assert target(None, None, 1) is None
    elsewhere = tmp_path / "elsewhere" / "step0000050.ckpt"
    assert target(None, elsewhere, 1) == str(elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_2"])
def test_two_processes_roll_back_together(tokenizer_run, tmp_path, strategy):
    """Critics that diverge on both; both attempts end the same way, with the reason."""
    more = ("curriculum=[{steps: 40, num_frames: 1, batch_size: 2}]", "trainer.guard_patience=4",
            "trainer.val_samples=0", "trainer.val_every_steps=40", "trainer.checkpoint_every_steps=4",
            "trainer.ema_decay=0", "optim.gradient_clip=0", "trainer.max_rollbacks=1", "trainer.devices=2",
            f"trainer.strategy={strategy}")
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "tests/training/diverging.py", "9", "9", TOKENIZER, *tokenizer_run(tmp_path, *more)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, timeout=1800)
    assert result.returncode != 0
    assert "rollback 1 of at most 1" in result.stderr and "has been rolled back 1 times" in result.stderr, \
        result.stderr[-3000:]
