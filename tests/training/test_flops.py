"""FLOPs of a run: against the arithmetic of a transformer, and against what real training steps execute."""

import dataclasses
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nbp.config import load_run
from nbp.evaluation.lpips import LPIPS
from nbp.generator import attention
from nbp.generator.masks import QUERIES
from nbp.tokenizer.model import Tokenizer
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.fit import fit
from nbp.training.flops import count_flops, flops_per_step, micro_batch_flops

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"
UNLOGGED = "trainer.log_every_steps=100"     # perf/tflops counts a step of its own


def flop_counter(function):
    """FLOPs of `function` by torch.utils.flop_counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def attended(positions):
    """Pairs of query and key that are multiplied, behind 8 condition positions in rows of 16: spans of queries see keys
    up to the end of the last one's row."""
    ends = [min(first + QUERIES, positions) for first in range(0, positions, QUERIES)]
    return sum((end - first) * (8 + 16 * math.ceil((end - 8) / 16))
               for first, end in zip(range(0, positions, QUERIES), ends))


def test_a_generator_step_is_six_flops_per_weight_and_token():
    run = load_run("configs/generator_ucf101_base.yaml", ["trainer.devices=8", "model.num_layers=3"])
    width, layers, clips = 1536, 3, 4 * 8 * 8
    positions = 8 + 1280                                    # every position behind the condition predicts a token
    found = flops_per_step(run)
    linear = 6 * (12 * width ** 2 * layers * positions + 64000 * width * 1280)
    attention = 12 * attended(positions) * width * layers
    assert found == pytest.approx(clips * (linear + attention), rel=0.01)


def test_recomputation_adds_a_forward_pass_of_the_layers():
    run = load_run("configs/generator_ucf101_base.yaml", ["batch_size=1", "model.num_layers=3"])
    assert run.model.activation_checkpointing
    more = micro_batch_flops(run, executed=True) - micro_batch_flops(run)
    once = 2 * 12 * 1536 ** 2 * 3 * 1288 + 4 * attended(1288) * 1536 * 3
    assert more == pytest.approx(once, rel=0.02)


def test_a_tokenizer_run_changes_with_its_curriculum_and_terms(load_tokenizer_run):
    run = load_tokenizer_run("loss.adversarial_start_step=3", "curriculum=[{steps: 2, num_frames: 1, batch_size: 2}, "
                             "{steps: 2, num_frames: 17, batch_size: 2}]")
    images, clips, critics = (flops_per_step(run, step) for step in (0, 2, 3))
    assert images < clips < critics == flops_per_step(run)
    run.trainer.accumulate, run.trainer.devices = 3, 2
    assert flops_per_step(run, 2) == 6 * clips


@pytest.mark.parametrize("more", [
    (), ("loss.gradient_penalty=1", "loss.feature_matching=1", "discriminator.frame=true"),
    ("loss.perceptual=0.1", "loss.perceptual_start_step=0", "images.share=0.5", "images.batch_size=3"),
    ("freeze_encoder=true", "init_from={}"),
])
def test_a_real_tokenizer_step_executes_what_is_planned(finished, tokenizer_run, tmp_path, monkeypatch, more):
    more = [text.format(finished / "model") for text in more]
    monkeypatch.setattr(tokenizer_builder, "fetch_lpips", lambda net: None)
    monkeypatch.setattr(tokenizer_builder.LPIPS, "from_file", lambda path, net: LPIPS(net))
    overrides = tokenizer_run(tmp_path / "run", "curriculum=[{steps: 1, num_frames: 9, batch_size: 2}]",
                              "trainer.accumulate=2", "loss.adversarial_start_step=0", UNLOGGED, *more)
    # PyTorch's own counter where it can: its hooks do not survive the penalty's autograd.grad.
    measure = count_flops if "loss.gradient_penalty=1" in more else flop_counter
    measured = measure(lambda: fit(load_run(TOKENIZER, overrides)))
    assert flops_per_step(load_run(TOKENIZER, overrides)) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_generator_step_executes_what_is_planned(generator_run, tmp_path, checkpointing, monkeypatch):
    monkeypatch.setattr(attention, "in_cpp", lambda *_: False)       # PyTorch's counter sees its own products
    overrides = generator_run(tmp_path / "run", "max_steps=1", "trainer.accumulate=2", UNLOGGED,
                              f"model.activation_checkpointing={checkpointing}")
    measured = flop_counter(lambda: fit(load_run(GENERATOR, overrides)))
    run = load_run(GENERATOR, overrides)
    assert 2 * micro_batch_flops(run, executed=True) == pytest.approx(measured, rel=0.1)
    assert flops_per_step(run) == pytest.approx(
        2 * micro_batch_flops(dataclasses.replace(run, model=dataclasses.replace(
            run.model, activation_checkpointing=False)), executed=True))


def test_tokenizing_online_costs_an_encoder_pass(generator_run, finished, data_config, tmp_path):
    fields = dict(line.split(": ") for line in data_config.read_text().splitlines())
    online = ["tokens=null", *(f"data.{name}={value}" for name, value in fields.items())]
    cached, run = (load_run(GENERATOR, generator_run(tmp_path, *more)) for more in ((), online))
    tokenizer = Tokenizer.from_pretrained(finished / "model")
    with torch.inference_mode():
        encoder = count_flops(lambda: tokenizer.encode(torch.rand(2, 3, 17, 32, 32)))
    assert flops_per_step(run) - flops_per_step(cached) == pytest.approx(encoder)


def test_planning_makes_no_weights():
    run = load_run("configs/generator_ucf101_3b.yaml")
    from nbp.training.flops import build_module

    module = build_module(run)
    assert sum(p.numel() for p in module.parameters()) > 4e9
    assert all(p.device == torch.device("meta") for p in module.parameters())
