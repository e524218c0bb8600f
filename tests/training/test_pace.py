"""The same run in a given time: which steps it gets, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from nbp.config import load_run
from nbp.system.files import read_json
from nbp.training import pace
from nbp.training.checkpoints import checkpoint_path


@pytest.fixture
def tokenizer_run(tmp_path):
    return load_run("tests/fixtures/runs/tokenizer.yaml", [f"trainer.out={tmp_path / 'run'}"])


def test_every_count_of_steps_is_scaled(tokenizer_run):
    twice = pace.scale_steps(tokenizer_run, 2.0)
    assert [phase.steps for phase in twice.curriculum] == [2 * phase.steps for phase in tokenizer_run.curriculum]
    for section, names in (("optim", ("warmup_steps", "decay_steps")),
                           ("loss", ("perceptual_start_step", "adversarial_start_step", "adversarial_warmup_steps")),
                           ("trainer", ("val_every_steps", "checkpoint_every_steps"))):
        for name in names:
            assert getattr(getattr(twice, section), name) == 2 * getattr(getattr(tokenizer_run, section), name), name
    assert 1 - twice.trainer.ema_decay == pytest.approx((1 - tokenizer_run.trainer.ema_decay) / 2)
    twice.check()
    generator = load_run("tests/fixtures/runs/generator.yaml")
    assert pace.scale_steps(generator, 0.5).max_steps == generator.max_steps // 2


def test_nothing_else_changes_and_what_is_off_stays_off(tokenizer_run):
    off = dataclasses.replace(tokenizer_run, optim=dataclasses.replace(tokenizer_run.optim, warmup_steps=0,
                                                                        decay_steps=None))
    same = pace.scale_steps(off, 1.0)
    assert same == off
    assert pace.scale_steps(off, 0.01).optim.warmup_steps == 0


def test_the_measured_pace_is_used_again_so_that_a_run_resumes(tokenizer_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 120.0)
    first = pace.fit_minutes(tokenizer_run, 1.0)
    assert first == pace.scale_steps(tokenizer_run, 0.5)
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 30.0)
    assert pace.fit_minutes(tokenizer_run, 1.0) == first
    assert read_json(tmp_path / "run" / "pace.json")["minutes"] == 1.0
    assert pace.fit_minutes(tokenizer_run, 2.0) == pace.scale_steps(tokenizer_run, 4.0)


def test_another_model_in_the_same_folder_is_measured_anew(tokenizer_run, monkeypatch):
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 60.0 * run.model.widths[0])
    first = pace.fit_minutes(tokenizer_run, 1.0)
    slower = dataclasses.replace(tokenizer_run, optim=dataclasses.replace(tokenizer_run.optim, lr=1e-5))
    assert pace.fit_minutes(slower, 1.0).curriculum == first.curriculum, "a rate takes no time"
    typo = dataclasses.replace(tokenizer_run, loss=dataclasses.replace(tokenizer_run.loss, perceptual=9.0))
    folder = checkpoint_path(Path(tokenizer_run.trainer.out) / "checkpoints", 2)
    folder.parent.mkdir(parents=True)
    folder.touch()
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 1.0)
    assert pace.fit_minutes(typo, 1.0).curriculum == first.curriculum == pace.fit_minutes(
        tokenizer_run, 1.0).curriculum, "a run that has checkpoints keeps its steps"
    folder.unlink()
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 60.0 * run.model.widths[0])
    wider = dataclasses.replace(tokenizer_run, model=dataclasses.replace(
        tokenizer_run.model, widths=[2 * width for width in tokenizer_run.model.widths]))
    assert pace.fit_minutes(wider, 1.0).curriculum[0].steps == pytest.approx(first.curriculum[0].steps / 2, abs=1)


def test_at_most_so_many_minutes_never_makes_a_run_longer(tokenizer_run, monkeypatch):
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 120.0)
    assert pace.fit_minutes(tokenizer_run, 3.0, at_most=True) == tokenizer_run
    assert pace.fit_minutes(tokenizer_run, 1.0, at_most=True) == pace.scale_steps(tokenizer_run, 0.5)


def test_the_estimate_counts_every_kind_of_step_and_its_reading(tokenizer_run, monkeypatch):
    monkeypatch.setattr(pace, "seconds_per_step", lambda run, step: 10.0 if step >= run.loss.adversarial_start_step
                        else 1.0)
    monkeypatch.setattr(pace, "seconds_to_read", lambda run, step: 0.5)
    total = sum(phase.steps for phase in tokenizer_run.curriculum)
    slow = total - tokenizer_run.loss.adversarial_start_step
    assert pace.seconds_of_run(tokenizer_run) == pytest.approx(pace.OVERHEAD * (1.5 * total + 9 * slow))


def test_workers_beside_a_gpu_cost_nothing_until_they_are_slower(tokenizer_run, monkeypatch):
    def seconds(workers, gpu):
        trainer = dataclasses.replace(tokenizer_run.trainer, num_workers=workers)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        return pace.with_reading(dataclasses.replace(tokenizer_run, trainer=trainer), 1.0, 4.0)

    assert [seconds(workers, gpu=True) for workers in (0, 2, 8)] == [5.0, 2.0, 1.0]
    assert [seconds(workers, gpu=False) for workers in (0, 2, 8)] == [5.0, 3.0, 1.5]


def test_reading_is_timed_on_the_runs_own_clips(clips_root):
    run = load_run("tests/fixtures/runs/tokenizer.yaml", [f"data.root={clips_root}", "data.resolution=32"])
    assert pace.seconds_to_read(run, 0) > 0
    assert pace.seconds_to_read(load_run("configs/generator_procgen.yaml"), 0) == 0


@pytest.mark.parametrize("name", ["tokenizer_procgen", "generator_procgen"])
def test_a_real_step_is_timed(name):
    assert pace.seconds_per_step(load_run(f"configs/{name}.yaml"), 0) > 0


def test_too_little_time_and_several_processes_are_refused(tokenizer_run, monkeypatch):
    monkeypatch.setattr(pace, "seconds_of_run", lambda run: 3600.0)
    with pytest.raises(ValueError, match=r"--minutes 0.1 is less than 20 steps of this run take here"):
        pace.fit_minutes(tokenizer_run, 0.1)
    two = dataclasses.replace(tokenizer_run, trainer=dataclasses.replace(tokenizer_run.trainer, devices=2))
    with pytest.raises(ValueError, match=r"--minutes measures one process, but trainer.devices=2"):
        pace.fit_minutes(two, 5)
    with pytest.raises(ValueError, match=r"--max-minutes measures one process"):
        pace.fit_minutes(two, 5, at_most=True)
