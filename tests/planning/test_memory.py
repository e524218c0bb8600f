"""Planned memory against the tensors that are alive at once in real training runs.

Tensors are counted, not what an allocator or a kernel takes besides: that differs between processors.
"""

import pytest
import torch
import torch.nn.functional as F

from nbp.config import load_run
from nbp.planning.memory import Allocations, device_memory
from nbp.training.fit import fit
from nbp.training.flops import micro_batches

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"
UNLOGGED = "trainer.log_every_steps=100"     # perf/tflops makes a step of its own, on paper


def measured_peak(function):
    """Most bytes of tensors alive at once that operations made while `function` ran."""
    with Allocations() as allocations:
        function()
    return sum(allocations.peak)


def fused_attention(query, key, value, attn_mask=None):
    """The CPU's fused kernel, which PyTorch itself takes unless a dispatch mode is around it, as in the measure."""
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias)[0]


def planned(config, overrides):
    run = load_run(config, overrides)
    largest = max((batch for _, batch in micro_batches(run)), key=lambda batch: batch.batch_size * batch.num_frames)
    return device_memory(run, ["auto"], 1, False, largest)["auto"]


def test_the_measure_itself():
    def hold():
        kept = torch.zeros(1000)
        torch.zeros(5000)
        return kept + 1

    assert measured_peak(hold) == pytest.approx(4 * 6000, rel=1e-6)


def test_allocations_know_views_and_lives():
    standing = torch.empty(10, device="meta")
    with Allocations([standing]) as allocations:
        a = standing + 1                    # 40 bytes
        a.view(2, 5).add_(1)                # the same storage
        b = torch.cat([a, a])               # 80 more
        del a
        c = b * 2                           # 80 more, the first 40 are gone
    assert sum(allocations.peak) == 160 and c.numel() == 20


# With checkpointing an AVX-512 processor was seen to hold 16% more than planned, an AVX2 one no more than 10%.
@pytest.mark.parametrize("bound, more", [
    (0.1, ()), (0.2, ("model.activation_checkpointing=true", "model.num_layers=6"))])
def test_a_generator_run_needs_what_is_planned(generator_run, tmp_path, monkeypatch, bound, more):
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused_attention)
    overrides = generator_run(tmp_path / "run", "max_steps=2", "batch_size=8", "trainer.accumulate=2", "model.width=64",
                              "model.num_layers=4", UNLOGGED, *more)
    measured = measured_peak(lambda: fit(load_run(GENERATOR, overrides)))
    memory = planned(GENERATOR, overrides)
    assert memory.total == pytest.approx(measured, rel=bound)
    assert memory.activations > memory.weights


@pytest.mark.parametrize("more", [(), ("loss.gradient_penalty=1", "discriminator.frame=true"), ("loss.adversarial=0",),
                                  ("freeze_encoder=true", "loss.adversarial=0", "init_from={}")])
def test_a_tokenizer_run_needs_what_is_planned(finished, tokenizer_run, tmp_path, more):
    more = [text.format(finished / "model") for text in more]
    overrides = tokenizer_run(tmp_path / "run", "curriculum=[{steps: 2, num_frames: 9, batch_size: 2}]",
                              "trainer.accumulate=2", "loss.adversarial_start_step=0", UNLOGGED, *more)
    measured = measured_peak(lambda: fit(load_run(TOKENIZER, overrides)))
    assert planned(TOKENIZER, overrides).total == pytest.approx(measured, rel=0.1)


def test_zero_divides_what_it_says():
    run = load_run("configs/generator_ucf101_base.yaml", ["batch_size=4"])
    [(_, batch)] = micro_batches(run)
    names = ["ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3", "deepspeed_2_offload"]
    memory = device_memory(run, names, 8, True, batch)
    moved = memory.pop("deepspeed_2_offload")
    count = memory["ddp"].weights // 4
    assert 9.3e8 < count < 9.4e8           # the released 982.8 M less the head's rows for ids that are not video
    assert [memory[name].weights for name in memory] == [4 * count, 2 * count, 2 * count, 2 * count // 8]
    assert [memory[name].gradients for name in memory] == [4 * count, 2 * count, 2 * count // 8, 2 * count // 8]
    assert [memory[name].optimizer for name in memory] == [8 * count] + 3 * [12 * count // 8]
    assert (moved.gradients, moved.optimizer, moved.host) == (0, 0, 12 * count // 8 + 4 * count // 8)
    # Those of the positions that the loss takes at a time, and never those of all positions.
    assert 2 * 64000 * 500 < memory["ddp"].logits < 2 * 4 * 1280 * 64000


def test_checkpointed_activations_and_low_precision_are_smaller():
    runs = [load_run("configs/generator_ucf101_base.yaml", [
        f"model.activation_checkpointing={word}", "model.num_layers=12"])
            for word in ("true", "false")]
    [(_, batch)] = micro_batches(runs[0])
    small, large = (device_memory(run, ["ddp"], 8, True, batch)["ddp"].activations for run in runs)
    full = device_memory(runs[1], ["ddp"], 8, False, batch)["ddp"].activations
    assert 2 * small < large < 0.9 * full
