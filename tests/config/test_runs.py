"""Run files: batch arithmetic, and sizes that would fail only once a model is built or a batch is seen."""

import pytest

from nbp.config import load_run

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"


@pytest.mark.parametrize("overrides, count", [
    ([], 1), (["trainer.accumulate=3"], 3), (["trainer.global_batch=32"], 4),
    (["trainer.global_batch=32", "trainer.devices=2"], 2),
    (["trainer.global_batch=32", "trainer.accumulate=4"], 4),      # as files of earlier runs have it
])
def test_accumulation_is_computed(overrides, count):
    run = load_run(GENERATOR, ["batch_size=8", *overrides])
    assert run.accumulate == count and f"x {count} accumulated" in run.trainer.describe_batch(8)


@pytest.mark.parametrize("config, overrides, message", [
    (GENERATOR, ["trainer.global_batch=32", "trainer.accumulate=2"],
     "trainer.accumulate=2, but trainer.global_batch=32 is 4 micro-batches of 8 clips: set one of the two"),
    (TOKENIZER, ["model.num_res_blocks=[1,-1,1,1]"], "num_res_blocks must be at least 0"),
    (TOKENIZER, ["discriminator.width=66"], "discriminator.width=66 makes a layer of 132 channels"),
    (TOKENIZER, ["discriminator.num_layers=0"], "num_layers must be at least 1"),
    (TOKENIZER, ["optim.lr=-1e-3"], "optim.lr must be at least 0, got -0.001"),
    (TOKENIZER, ["trainer.val_every_steps=0"], "trainer.val_every_steps must be at least 1, got 0"),
    (GENERATOR, ["trainer.log_every_steps=0"], "trainer.log_every_steps must be at least 1, got 0"),
    (GENERATOR, ["batch_size=0", "trainer.global_batch=32"], "batch_size must be at least 1, got 0"),
    (TOKENIZER, ["curriculum=[]"], "curriculum must have at least one phase"),
    (TOKENIZER, ["model.fsq_levels=[]"], r"fsq_levels must be one or more numbers of at least 2, got \[\]"),
    (TOKENIZER, ["kind=generator"], "kind must stay tokenizer, whose fields this file has, got 'generator'"),
    (GENERATOR, ["max_steps=0"], "max_steps must be at least 1, got 0"),
    (TOKENIZER, ["curriculum=[{steps: 0, num_frames: 1, batch_size: 2}]"], "curriculum.steps must be at least 1, got"),
    (TOKENIZER, ["optim.betas=[0.9]"], r"optim.betas must be two numbers in \[0, 1\), got \[0.9\]"),
    (TOKENIZER, ["optim.gradient_clip=-1"], "optim.gradient_clip must be at least 0, got -1"),
    (TOKENIZER, ["optim.lr=.nan"], "optim.lr must be at least 0, got nan"),
    (TOKENIZER, ["loss.perceptual=-1"], "loss.perceptual must be at least 0, got -1"),
    (TOKENIZER, ["data.fps=-1"], "data.fps must be a number above 0, got -1"),
    (GENERATOR, ["optim.muon_momentum=3"], r"optim.muon_momentum must be in \[0, 1\), got 3"),
    (TOKENIZER, ["trainer.ema_decay=1.5"], r"trainer.ema_decay must be in \[0, 1\), got 1.5"),
    (TOKENIZER, ["trainer.num_workers=-1"], "trainer.num_workers must be at least 0, got -1"),
])
def test_what_cannot_train_is_refused_when_it_is_read(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_run(config, ["batch_size=8", *overrides] if config == GENERATOR else overrides)
