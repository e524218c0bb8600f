"""What a run reports: schedule, speed, pictures, videos, wandb, and the validation distance that picks the best."""

import dataclasses
import os

import pytest
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from nbp import train
from nbp.config import TrainerConfig, load_run
from nbp.data.video_io import probe
from nbp.evaluation.networks import FeatureNetwork
from nbp.tokenizer.model import Tokenizer
from nbp.training import generator as generator_builder
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.fit import fit
from nbp.training.flops import peak_flops
from nbp.training.logs import MetricsLog, build_loggers, wandb_id, wandb_key
from nbp.training.metrics_log import read_metrics

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"


class Averages(torch.nn.Module):
    """Stands in for the I3D: 4 colour statistics of a clip as features."""

    def forward(self, video):
        return torch.cat([video.mean((2, 3, 4)), video.std((1, 2, 3, 4))[:, None]], 1)


@pytest.fixture
def small_network(monkeypatch):
    from nbp.training import validation

    network = FeatureNetwork("i3d-tf", Averages(), "0" * 64)
    init = validation.ValidationFVD.__init__
    monkeypatch.setattr(validation.ValidationFVD, "__init__", lambda self, *arguments: init(self, *arguments, 4))
    for builder in (tokenizer_builder, generator_builder):
        monkeypatch.setattr(builder, "kinetics_network", lambda *_: lambda device: network)


def test_learning_rate_at_the_corners_also_after_a_resume(generator_run, tmp_path):
    more = ("trainer.val_samples=0", "optim.warmup_steps=3", "max_steps=9", "trainer.checkpoint_every_steps=5")
    train.main([GENERATOR, *generator_run(tmp_path, *more)])
    rate = read_metrics(tmp_path)["lr-AdamW/pg1"]
    assert rate[0] == pytest.approx(2e-3 / 3) and rate[2] == pytest.approx(2e-3) and rate[3] == pytest.approx(2e-3)
    assert rate[8] == pytest.approx(0, abs=1e-12)
    (tmp_path / "checkpoints" / "step0000009.ckpt").unlink()
    (tmp_path / "logs" / "version_0").rename(tmp_path / "first")
    train.main([GENERATOR, *generator_run(tmp_path, *more)])
    resumed = read_metrics(tmp_path)["lr-AdamW/pg1"]
    assert min(resumed) in (5, 6, 7, 8) and {step: rate[step] for step in resumed} == resumed


def test_speed_and_memory_are_logged(finished, generator_run, tmp_path):
    found = read_metrics(finished)
    for name in ("clips_per_s", "tokens_per_s", "tflops", "memory_gib"):
        assert all(value > 0 for value in found[f"perf/{name}"].values()), name
    # 5 frames of 32x32 are 2 x 4 x 4 codes
    assert found["perf/tokens_per_s"][5] == pytest.approx(32 * found["perf/clips_per_s"][5], rel=1e-4)
    assert set(found["train/discriminator_balance"]) == set(range(1, 6))


@pytest.mark.parametrize("device, peak", [
    ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A40", 150e12), ("NVIDIA L40S", 362e12), ("NVIDIA L40", 181e12),
    ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 3090", 71e12), ("NVIDIA RTX A4000", None), ("NVIDIA GH200 480GB", None),
    ("something else", None)])
def test_a_device_is_known_by_its_whole_name(device, peak):
    assert peak_flops(device) == peak


def test_samples_are_pictures_and_videos(generator_run, tmp_path):
    train.main([GENERATOR, *generator_run(tmp_path, "trainer.val_samples=2", "trainer.val_every_steps=3")])
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step000000{step}.{kind}" for step in (3, 6) for kind in ("mp4", "png")]
    info = probe(tmp_path / "samples" / "step0000006.mp4")
    assert (info.num_frames, info.width, info.height) == (17, 64, 32)


def test_wandb_is_offline_without_a_key(generator_run, tmp_path, monkeypatch):
    config = load_run(GENERATOR, generator_run(tmp_path, "trainer.wandb_project=nbp")).trainer
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert not wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_key()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not wandb_key()
    assert [type(logger) for logger in build_loggers(config)] == [MetricsLog, WandbLogger]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert [type(logger) for logger in build_loggers(config)] == [MetricsLog]
    assert wandb_id(tmp_path) == wandb_id(tmp_path)


def test_one_rank_makes_the_wandb_id(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert wandb_id(tmp_path) is None and not list(tmp_path.iterdir())
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert wandb_id(tmp_path) == (tmp_path / "wandb_id.txt").read_text().strip()


@pytest.mark.parametrize("path", ["someone/tokenizer", "magvit2.pth", "tokenizer.bin"])
def test_speed_is_logged_whatever_the_tokenizer_is_stored_as(generator_run, finished, data_config, tmp_path,
                                                             monkeypatch, path):
    """Its architecture is the loaded one's: neither read again nor guessed from the name."""
    tokenizer = Tokenizer.from_pretrained(finished / "model")
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda *arguments: tokenizer)
    fields = dict(line.split(": ") for line in data_config.read_text().splitlines())
    online = (f"data.{name}={value}" for name, value in fields.items())
    fit(load_run(GENERATOR, generator_run(tmp_path, "tokens=null", f"tokenizer={path}", "trainer.val_samples=0",
                                          "max_steps=1", *online)))
    assert read_metrics(tmp_path)["perf/tflops"][0] > 0


@pytest.mark.slow
def test_an_offline_wandb_run_holds_metrics_and_videos(generator_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train.main([GENERATOR, *generator_run(tmp_path, "trainer.wandb_project=nbp", "trainer.val_every_steps=3")])
    import wandb

    wandb.finish()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) and list(folder.rglob("*.mp4")) and list(folder.rglob("*.png"))
    assert folder.name.endswith(wandb_id(tmp_path))
    assert read_metrics(tmp_path)["train/loss"], "CSV always"


def test_the_best_checkpoint_is_that_of_the_lowest_distance(clips_root, tokenizer_run, tmp_path, small_network):
    more = ("trainer.val_fvd_clips=8", f"data.val_list={os.path.join(clips_root, 'train.txt')}",
            "trainer.checkpoint_every_steps=100")
    train.main([TOKENIZER, *tokenizer_run(tmp_path, *more)])
    found = read_metrics(tmp_path)["val/rfvd"]
    assert len(found) == 3 and len(set(found.values())) == 3
    best = min(found, key=found.get) + 1
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve().name == f"step{best:07d}.ckpt"


def test_a_distance_is_not_compared_with_the_scores_of_before(clips_root, tokenizer_run, tmp_path, small_network):
    """A PSNR that the run had before distances chose would be lower than each of them."""
    train.main([TOKENIZER, *tokenizer_run(tmp_path)])
    train.main([TOKENIZER, *tokenizer_run(
        tmp_path, "trainer.val_fvd_clips=8", f"data.val_list={os.path.join(clips_root, 'train.txt')}",
        "trainer.accept_changes=true",
        "curriculum=[{steps: 2, num_frames: 1, batch_size: 2}, {steps: 6, num_frames: 5, batch_size: 2}]")])
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve().name == "step0000008.ckpt"


def test_generated_clips_are_compared_with_the_tokenizers_own(generator_run, tmp_path, small_network, tokens):
    import shutil

    shutil.copytree(tokens / "train", tmp_path / "tokens" / "train")
    shutil.copytree(tokens / "train", tmp_path / "tokens" / "val")
    more = ("trainer.val_fvd_clips=8", f"tokens={tmp_path / 'tokens'}", "trainer.val_samples=0")
    train.main([GENERATOR, *generator_run(tmp_path / "run", *more)])
    found = read_metrics(tmp_path / "run")["val/gfvd"]
    assert len(found) == 3 and all(value > 0 for value in found.values())


@pytest.mark.parametrize("num_clips, num_frames, devices, got", [
    (6, 17, 1, "6 and 17"), (8, 5, 1, "8 and 5"), (9, 17, 5, r"5 \(5 processes take as many each, 5 of 9\) and 17")])
def test_a_validation_distance_that_cannot_be_is_refused_before_training(num_clips, num_frames, devices, got):
    from nbp.training.validation import kinetics_network

    config = TrainerConfig(out="run", val_fvd_clips=9, devices=devices)
    with pytest.raises(ValueError, match=f"got {got}; trainer.val_fvd_clips=0 does without"):
        kinetics_network(config, num_clips, num_frames)


@pytest.mark.slow
def test_the_real_network_gives_no_distance_to_itself(clips_root, load_tokenizer_run):
    """The I3D itself, over validation clips whose reconstruction is the original."""
    import pytorch_lightning as pl

    from nbp.training import fit
    from nbp.training.validation import ValidationFVD, kinetics_network, to_frames

    run = load_tokenizer_run(f"data.val_list={os.path.join(clips_root, 'train.txt')}", "trainer.val_samples=0",
                             "curriculum=[{steps: 2, num_frames: 17, batch_size: 2}]")
    module, data, extra = tokenizer_builder.build(run)
    network = kinetics_network(dataclasses.replace(run.trainer, val_fvd_clips=8), 8, 17)
    same = ValidationFVD("val/rfvd", 8, lambda module, batch: to_frames(batch["video"]),
                         lambda module, batch, seed: to_frames(batch["video"]), network)
    fit.build_trainer(run, module.max_steps, [same]).fit(module, data)
    assert isinstance(module, pl.LightningModule)
    assert read_metrics(run.trainer.out)["val/rfvd"][1] == pytest.approx(0, abs=1e-3)


def test_a_log_forgets_what_a_run_went_back_from(tmp_path):
    def write(number, rows):
        folder = tmp_path / "logs" / f"version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,train/loss,val/psnr\n" + "".join(f"{row}\n" for row in rows))

    write(0, ["1,0.1,", "1,,9.0", "3,0.3,", "3,,9.3", "5,0.5,", "5,,9.5", "4,0.44,"])      # a rollback in one process
    assert read_metrics(tmp_path) == {"train/loss": {1: 0.1, 3: 0.3, 4: 0.44}, "val/psnr": {1: 9.0, 3: 9.3}}
    write(1, ["2,0.2,", "3,0.33,"])
    assert read_metrics(tmp_path) == {"train/loss": {1: 0.1, 2: 0.2, 3: 0.33}, "val/psnr": {1: 9.0}}
