"""The planning command: what it prints, and that its sums are right."""

import re
from pathlib import Path

import pytest

from nbp import plan
from nbp.config import load_run
from nbp.planning.plan import checkpoint_bytes, plan_run
from nbp.training.flops import GPUS

ROOT = Path(__file__).parents[1]
STATED_HOURS = {path: re.search(r"# Hours: +([\d,]+) GPU-hours \((\d+) hours on (\d+)\) by nbp.plan", path.read_text())
                for path in sorted((ROOT / "configs").rglob("*.yaml"))}


def test_a_published_generator(capsys):
    plan.main(["configs/generator_ucf101_base.yaml", "--gpus", "64", "--gpu", "a100-80g", "model.num_layers=4"])
    text = capsys.readouterr().out
    assert "configs/generator_ucf101_base.yaml on 64 x a100-80g, bf16-mixed, strategy deepspeed_1" in text
    for word in ("layers                            113.3 M", "256 clips", "deepspeed_3", "checkpoint", "GPU hours",
                 "the training set is not here"):
        assert word in text, word
    assert "3.277e+10 tokens" in text          # 100,000 steps x 256 clips x 1280
    size = 14 * 366.9e6                        # the 933.6 M of the whole model without 20 layers
    assert f"{size / 1e9:.2f} GB a checkpoint" in text
    assert f"{3 * size / 1e9:.2f} GB for 3 checkpoints" in text


def test_hours_follow_from_operations():
    phases = "[{steps: 900, num_frames: 1, batch_size: 4}, {steps: 450, num_frames: 5, batch_size: 4}, " \
             "{steps: 260, num_frames: 17, batch_size: 4}]"
    run = load_run("tests/fixtures/runs/tokenizer.yaml", [
        "trainer.devices=4", "loss.perceptual=0.1", "model.widths=[8,8,8,8]", f"curriculum={phases}",
        "loss.perceptual_start_step=900", "loss.adversarial_start_step=1400"])
    planned = plan_run(run, "h100-80g", 0.5)
    assert [stretch.steps for stretch in planned.stretches] == [900, 450, 50, 210]    # the critics start inside a phase
    work = sum(stretch.steps * stretch.executed_flops_per_step for stretch in planned.stretches)
    assert planned.hours == pytest.approx(work / (4 * 989e12 * 0.5) / 3600)
    flops = [stretch.model_flops_per_step for stretch in planned.stretches]
    assert flops[3] > flops[2]                                        # with critics
    assert [stretch.tokens_per_step for stretch in planned.stretches] == [16 * n * 64 for n in (1, 2, 5, 5)]
    assert set(planned.memory) == {"ddp"}, "DeepSpeed in bfloat16 has no moving average"
    run.trainer.ema_decay = 0
    assert set(plan_run(run, "h100-80g", 0.5).memory) == {"ddp", "deepspeed_1", "deepspeed_2", "deepspeed_2_offload"}


def test_muon_keeps_one_buffer_and_multiplies_matrices():
    """Against AdamW: less to keep, more to compute on each device, and no DeepSpeed."""
    more = ["model.num_codes=100", "trainer.devices=2", "trainer.ema_decay=0"]
    adamw, muon = (plan_run(load_run("tests/fixtures/runs/generator.yaml", [*more, *own]), "a100-80g", 0.5)
                   for own in ([], ["optim.optimizer=muon", "optim.muon_lr=0.01"]))
    saved = adamw.memory["ddp"].optimizer - muon.memory["ddp"].optimizer
    assert 0 < saved == adamw.checkpoint - muon.checkpoint and saved % 4 == 0
    assert set(muon.memory) == {"ddp"} and "deepspeed_2" in adamw.memory
    assert muon.stretches[0].executed_flops_per_step > adamw.stretches[0].executed_flops_per_step


@pytest.mark.parametrize("gpu, precision, found", [("a100-80g", "auto", "bf16-mixed"), ("v100-32g", "auto", "32-true"),
                                                   ("a100-80g", "32-true", "32-true")])
def test_precision_is_that_of_the_gpu(gpu, precision, found):
    run = load_run("tests/fixtures/runs/generator.yaml", [f"trainer.precision={precision}"])
    planned = plan_run(run, gpu, 0.3)
    assert planned.precision == found and planned.gpu_memory == GPUS[gpu].memory_gb * 10**9


@pytest.mark.parametrize("strategy, low, size", [("ddp", True, 12), ("auto", False, 12), ("deepspeed_2", False, 16),
                                                 ("deepspeed_1", True, 14), ("deepspeed_3_offload", True, 12)])
def test_a_checkpoint_holds_weights_and_moments(strategy, low, size):
    assert checkpoint_bytes(strategy, 1000, 0, low, 8000) == 1000 * size
    assert checkpoint_bytes(strategy, 1000, 900, low, 8000) == 1000 * size + 3600


def test_refusals():
    run = load_run("tests/fixtures/runs/generator.yaml", ["trainer.precision=bf16-mixed"])
    with pytest.raises(ValueError, match="v100-32g does not multiply bfloat16"):
        plan_run(run, "v100-32g", 0.3)
    with pytest.raises(ValueError, match=r"utilisation must be in \(0, 1\], got 0"):
        plan_run(run, "a100-80g", 0)
    with pytest.raises(ValueError, match="--gpu is 'abacus'; accepted: v100-32g, a100-40g"):
        plan.main(["tests/fixtures/runs/generator.yaml", "--gpus", "1", "--gpu", "abacus"])
    with pytest.raises(ValueError, match=r"base.yaml: trainer.global_batch=256 is no multiple of 12 = batch_size 4 x"):
        plan.main(["configs/generator_ucf101_base.yaml", "--gpus", "3", "--gpu", "a100-80g"])
    with pytest.raises(ValueError, match="optim.learning_rate"):
        plan.main(["tests/fixtures/runs/generator.yaml", "--gpus", "1", "--gpu", "a100-80g", "optim.learning_rate=1"])


def test_a_tokenizer_that_is_not_trained_yet_may_be_the_released_one(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [str(ROOT / "configs/generator_folder.yaml"), "--gpus", "1", "--gpu", "a100-80g", "model.num_layers=2"]
    with pytest.raises(ValueError, match="^tokenizer=runs/tokenizer_folder/model does not exist yet"):
        plan.main(arguments)
    plan.main([*arguments, "tokenizer=released.pt"])
    assert "tokenizer (frozen)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path, stated in STATED_HOURS.items() if stated], ids=lambda path: path.stem)
def test_the_hours_that_a_run_file_states(path):
    total, hours, devices = (int(number.replace(",", "")) for number in STATED_HOURS[path].groups())
    planned = plan_run(load_run(path, [f"trainer.devices={devices}"]), "a100-80g", 0.4)
    assert total == pytest.approx(planned.hours * devices, rel=0.01, abs=0.6)
    assert hours == pytest.approx(planned.hours, abs=0.6)


@pytest.mark.slow
def test_the_plan_in_the_documentation_is_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *shown = re.search(r"```\n\$ (.*?)```", (ROOT / "docs/planning.md").read_text(), re.S)[1].splitlines()
    plan.main(command.split()[3:])
    assert capsys.readouterr().out.splitlines() == shown
