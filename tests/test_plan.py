"""The planning command: what it prints, and that its sums are right."""

import pytest

from nbp import plan
from nbp.config import load_run
from nbp.planning import GPUS
from nbp.planning import plan as make_plan


def test_a_published_generator(capsys):
    plan.main(["configs/generator_ucf101_base.yaml", "--gpus", "64", "--gpu", "a100-80g", "model.num_layers=4"])
    text = capsys.readouterr().out
    assert "configs/generator_ucf101_base.yaml on 64 x a100-80g, bf16-mixed, strategy deepspeed_1" in text
    for word in ("layers                            113.3 M", "256 clips", "deepspeed_3", "checkpoint", "GPU hours", "the training set is not here"):
        assert word in text, word
    assert "tokens" in text and "3.277e+10 tokens" in text          # 100,000 steps x 256 clips x 1280


def test_hours_follow_from_operations():
    phases = "[{steps: 900, num_frames: 1, batch_size: 4}, {steps: 450, num_frames: 5, batch_size: 4}, " \
             "{steps: 260, num_frames: 17, batch_size: 4}]"
    run = load_run("configs/tokenizer_procgen.yaml", [
        "trainer.devices=4", "loss.perceptual=0.1", "model.widths=[8,8,8,8]", f"curriculum={phases}", "loss.perceptual_start_step=900", "loss.adversarial_start_step=1400"])
    numbers = make_plan(run, "h100-80g", 0.5)
    assert [phase["steps"] for phase in numbers["phases"]] == [900, 450, 50, 210]    # the critics start inside a phase
    work = sum(phase["steps"] * phase["executed_flops_per_step"] for phase in numbers["phases"])
    hours = sum(phase["hours"] for phase in numbers["phases"])
    assert hours == pytest.approx(work / (4 * 989e12 * 0.5) / 3600)
    flops = [phase["model_flops_per_step"] for phase in numbers["phases"]]
    assert flops[3] > flops[2]                                        # with critics
    assert set(numbers["memory"]) == {"ddp", "deepspeed_1", "deepspeed_2", "deepspeed_2_offload"}


@pytest.mark.parametrize("gpu, precision, found", [("a100-80g", "auto", "bf16-mixed"), ("v100-32g", "auto", "32-true"),
                                                   ("a100-80g", "32-true", "32-true")])
def test_precision_is_that_of_the_gpu(gpu, precision, found):
    run = load_run("configs/generator_procgen.yaml", [f"trainer.precision={precision}"])
    numbers = make_plan(run, gpu, 0.3)
    assert numbers["precision"] == found and numbers["gpu_memory"] == GPUS[gpu].memory_gb * 10**9


def test_refusals(capsys):
    run = load_run("configs/generator_procgen.yaml", ["trainer.precision=bf16-mixed"])
    with pytest.raises(ValueError, match="v100-32g does not multiply bfloat16"):
        make_plan(run, "v100-32g", 0.3)
    with pytest.raises(ValueError, match=r"utilisation must be in \(0, 1\], got 0"):
        make_plan(run, "a100-80g", 0)
    with pytest.raises(SystemExit):
        plan.main(["configs/generator_procgen.yaml", "--gpus", "1", "--gpu", "abacus"])
    assert "invalid choice: 'abacus'" in capsys.readouterr().err
