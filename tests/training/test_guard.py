"""The guard: what it takes for trouble, and that a run goes back to its last good checkpoint a bounded number of times."""

import math

import pytest
import pytorch_lightning as pl
from killing import add_callback

from nbp import train
from nbp.training import fitting
from nbp.training.guard import WARMUP, Guard
from nbp.training.metrics_log import read_metrics

TOKENIZER = "configs/tokenizer_procgen.yaml"
LONG = ("curriculum=[{steps: 40, num_frames: 1, batch_size: 2}]", "trainer.guard_patience=4", "trainer.val_samples=0",
        "trainer.val_every_steps=40", "trainer.checkpoint_every_steps=4")


def verdicts(values, **arguments):
    guard = Guard(patience=3, **arguments)
    found = []
    for row in values:
        guard.look(row)
        found.append(guard.doubt)
    return found


def test_a_healthy_run_raises_no_doubt():
    rows = [{"reconstruction": 0.3 * 0.98 ** n + 0.01 * (n % 3), "discriminator": 2 - n / 200, "logit": n / 100,
             "logit_gap": 0.01 * n + 1e-5, "code_perplexity": 5 + n, "loss": 9 - n / 50} for n in range(100)]
    assert verdicts(rows) == [None] * 100


@pytest.mark.parametrize("name, healthy, wrong, meaning", [
    ("loss", 4.0, 6.5, "the loss has diverged"),
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


def test_another_clip_length_starts_the_references_anew():
    guard = Guard(patience=3)
    for _ in range(WARMUP + 5):
        guard.look({"reconstruction": 0.01}, shape="(1 frame)")
    guard.look({"reconstruction": 0.2}, shape="(5 frames)")
    assert guard.doubt is None


class Inject(pl.Callback):
    """Multiplies the discriminator's learning rate by 1000 from a step on, in the first `times` attempts."""

    def __init__(self, step, times):
        self.step, self.times, self.attempts = step, times, 0

    def on_train_start(self, trainer, module):
        self.attempts += 1

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step >= self.step and self.attempts <= self.times:
            optimizer.param_groups[1]["lr"] = 1000 * module.run.optim.lr


@pytest.fixture
def inject(monkeypatch):
    def with_injection(*arguments):
        monkeypatch.setattr(fitting, "BUILD", dict(fitting.BUILD))
        add_callback(Inject(*arguments))
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
