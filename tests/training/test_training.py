"""Tokenizer training through Lightning itself: it learns, resumes, and gives the same on every engine."""


import pytest
import pytorch_lightning as pl
import torch
from training_runs import equal_losses

from nbp import train
from nbp.config import load_run
from nbp.tokenizer.model import Tokenizer
from nbp.training import fit
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.metrics_log import read_metrics

TOKENIZER = "tests/fixtures/runs/tokenizer.yaml"


def losses(out, column="train/loss"):
    """step -> value of a run."""
    return read_metrics(out).get(column)


def test_a_run_leaves_config_logs_pictures_and_a_model(finished):
    assert load_run(finished / "config.yaml").trainer.out == str(finished)
    assert sorted(losses(finished)) == list(range(6))
    assert set(losses(finished, "train/discriminator")) == set(range(6))
    assert set(losses(finished, "train/logit_real")) == set(range(1, 6)), "critics start at step 1"
    for column in ("train/grad_norm_0", "train/grad_norm_1", "train/code_usage", "train/code_perplexity",
                   "train/reconstruction", "train/skipped_steps", "val/psnr", "val/code_usage", "val/code_perplexity"):
        assert losses(finished, column), column
    assert sorted(p.name for p in (finished / "samples").iterdir()) == [
        f"step000000{step}.{kind}" for step in (2, 4, 6) for kind in ("mp4", "png")]
    assert isinstance(Tokenizer.from_pretrained(finished / "model"), Tokenizer)


def test_a_resumed_run_equals_an_uninterrupted_one(finished, tokenizer_run, tmp_path):
    class Stop(Exception):
        pass

    class StopAt(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise Stop

    overrides = tokenizer_run(tmp_path)
    run = load_run(TOKENIZER, overrides)
    pl.seed_everything(run.trainer.seed, workers=True)
    module, data, extra = tokenizer_builder.build(run)
    with pytest.raises(Stop):
        fit.build_trainer(run, module.max_steps, [*extra, StopAt()]).fit(module, data)
    train.main([TOKENIZER, *overrides])
    whole, resumed = losses(finished), losses(tmp_path)
    assert {step: resumed[step] for step in range(2, 6)} == {step: whole[step] for step in range(2, 6)}
    one, other = (Tokenizer.from_pretrained(out / "model").state_dict() for out in (finished, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_critics_begin_with_the_optimizer_s_bias_correction(finished):
    """Steps before theirs, whose gradients are zeros, do not count."""
    stored = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    autoencoder, critics = ({float(stored["state"][number]["step"]) for number in group["params"]}
                            for group in stored["param_groups"])
    assert autoencoder == {6.0} and critics == {5.0}


@pytest.mark.parametrize("engine", ["deepspeed_2", pytest.param("deepspeed_1", marks=pytest.mark.slow(seconds=100))])
def test_two_processes_agree(losses_by_engine, tokenizer_run, engine):
    equal_losses(losses_by_engine(TOKENIZER, lambda out: tokenizer_run(out, "optim.gradient_clip=0"), "ddp", engine), 6)


@pytest.mark.slow
def test_deepspeed_in_bfloat16_has_its_perceptual_loss(launch, tokenizer_run, tmp_path):
    """DeepSpeed opens no autocast, which elsewhere casts what enters LPIPS."""
    launch(2, TOKENIZER, *tokenizer_run(
        tmp_path, "optim.gradient_clip=0", "trainer.ema_decay=0", "loss.perceptual=0.1", "loss.perceptual_frames=2",
        "loss.perceptual_start_step=0", "trainer.precision=bf16-mixed", "trainer.strategy=deepspeed_2",
        "curriculum=[{steps: 2, num_frames: 5, batch_size: 2}]"))
    assert all(value > 0 for value in read_metrics(tmp_path)["train/perceptual"].values())


def test_zero_3_is_refused_for_tokenizers(load_tokenizer_run):
    with pytest.raises(ValueError, match="deepspeed_3 cannot train a tokenizer"):
        tokenizer_builder.build(load_tokenizer_run("trainer.strategy=deepspeed_3"))


def test_deepspeed_cannot_clip_the_two_sides_apart(load_tokenizer_run):
    with pytest.raises(ValueError, match="optim.gradient_clip=1.0 with trainer.strategy=deepspeed_2"):
        tokenizer_builder.build(load_tokenizer_run("trainer.strategy=deepspeed_2"))


@pytest.mark.slow
def test_the_tokenizer_overfits_one_batch(load_tokenizer_run):
    run = load_tokenizer_run("loss.adversarial=0", "model.fsq_levels=[8,8,8]")
    torch.manual_seed(0)        # weights of whatever the tests before left behind may need more steps
    module, data, _ = tokenizer_builder.build(run)
    video = torch.stack([data.train[i]["video"][:, :5] for i in range(2)]).float().div(255)
    optimizer = torch.optim.Adam(module.model.parameters(), 0.001)
    for _ in range(150):
        optimizer.zero_grad()
        reconstruction, _ = module.model(video)
        (reconstruction - video).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (module.model(video)[0] - video).square().mean()
    assert -10 * error.log10() > 20


def test_a_step_that_is_not_finite_is_skipped_and_counted(load_tokenizer_run, monkeypatch):
    run = load_tokenizer_run("trainer.resume=never")
    module, data, extra = tokenizer_builder.build(run)
    terms = module.autoencoder_terms

    def poisoned(*videos):
        factor = float("nan") if module.global_step == 1 else 1
        return {name: value * factor for name, value in terms(*videos).items()}

    monkeypatch.setattr(module, "autoencoder_terms", poisoned)
    fit.build_trainer(run, module.max_steps, extra).fit(module, data)
    assert int(module.skipped_steps) == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_lecam_s_averages_move_once_a_step_under_deepspeed_as_well(tokenizer_run, tmp_path):
    averages = []
    for engine in ("auto", "deepspeed_1"):
        run = load_run(TOKENIZER, tokenizer_run(
            tmp_path / engine, f"trainer.strategy={engine}", "trainer.accumulate=3", "trainer.ema_decay=0",
            "trainer.val_samples=0", "optim.gradient_clip=0", "loss.lecam=0.001",
            "curriculum=[{steps: 4, num_frames: 5, batch_size: 1}]"))
        module = fit.fit(run).lightning_module
        averages.append((float(module.lecam_real), float(module.lecam_fake)))
    assert averages[1] == pytest.approx(averages[0], rel=1e-3)


@pytest.mark.parametrize("overrides, message", [
    (["optim.weight_decay=0.1"], "optim.weight_decay=0.1: under AdamW a tokenizer has none; use 0"),
    (["loss.adversarial=0", "loss.feature_matching=1"], "loss.feature_matching=1.0 needs critics; with loss.adv")])
def test_settings_without_an_effect_are_refused_for_new_runs(load_tokenizer_run, overrides, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_builder.build(load_tokenizer_run(*overrides))
    tokenizer_builder.build(load_tokenizer_run(*overrides), fresh=False)
