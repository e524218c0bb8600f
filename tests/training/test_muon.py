"""Muon: its step by another formula, the split of parameters, resuming, ranks, and engines that it refuses."""

import shutil

import pytest
import torch
from torch import nn
from training_runs import work_on_cpu

from nbp import train
from nbp.config import load_run
from nbp.tokenizer.model import Tokenizer
from nbp.training.metrics_log import read_metrics
from nbp.training.muon import Muon, muon_groups, orthogonalise
from nbp.training.strategies import check_engine
from nbp.training.tokenizer import TokenizerModule

MUON = ("optim.optimizer=muon", "optim.muon_lr=1e-2")


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_end_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix[None])[0])
    assert values.min() > 0.4 and values.max() < 1.4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonalise(matrix[None])[0].flatten(), (u @ v).flatten(), 0) > 0.95


def test_a_loaded_count_of_steps_lies_where_its_weight_does():
    """A fused step on a GPU cannot read it elsewhere."""
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    first = Muon([{"params": [weight], "lr": 0.1, "muon": False, "weight_decay": 0.0}], betas=(0.9, 0.95), momentum=0.9)
    first.step()
    elsewhere = nn.Parameter(torch.zeros(3, device="meta"))
    second = Muon([{"params": [elsewhere], "lr": 0.1, "muon": False, "weight_decay": 0.0}], betas=(0.9, 0.95),
                  momentum=0.9)
    second.load_state_dict(first.state_dict())
    assert {tensor.device.type for tensor in second.state[elsewhere].values()} == {"meta"}


@pytest.mark.parametrize("fast", [True, False])
def test_the_step_is_one_in_float32_and_bfloat16(fast, monkeypatch):
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("nbp.training.muon.multiplies_bfloat16", lambda device: fast)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert orthogonalise(matrix[None])[0].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(orthogonalise(matrix[None])[0].flatten(), (u @ v).flatten(), 0) > 0.95


def test_zeros_stay_zeros():
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


def test_one_step_is_the_published_one():
    kernel = nn.Parameter(torch.randn(32, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    before, gradient = kernel.detach().clone(), torch.randn(kernel.shape)
    optimizer = Muon([{"params": [kernel], "lr": 0.1, "muon": True, "momentum": 0.9, "weight_decay": 0.5}])
    kernel.grad = gradient
    optimizer.step()
    nesterov = (1 - 0.9) * gradient + 0.9 * (1 - 0.9) * gradient
    update = orthogonalise(nesterov.flatten(1)[None]).view_as(kernel) * (32 / 4) ** 0.5
    torch.testing.assert_close(kernel.detach(), before * (1 - 0.1 * 0.5) - 0.1 * update)


@pytest.mark.parametrize("stacked", [1, 100, 2**20])
def test_matrices_taken_together_move_as_each_alone(stacked, monkeypatch):
    shapes, steps, draw = [(6, 5), (5, 6), (6, 5), (6, 5, 1, 1, 1), (4, 4)], 3, torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in shapes]
    gradients = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(steps)]

    def train(numbers):
        weights = [nn.Parameter(start[number].clone()) for number in numbers]
        optimizer = Muon([{"params": weights, "lr": 0.1, "muon": True, "momentum": 0.9, "weight_decay": 0.5}])
        for step in gradients:
            for weight, number in zip(weights, numbers):
                weight.grad = step[number].clone()
            optimizer.step()
        return [weight.detach() for weight in weights]

    alone = [train([number])[0] for number in range(len(shapes))]
    monkeypatch.setattr("nbp.training.muon.STACKED", stacked)
    torch.testing.assert_close(train(range(len(shapes))), alone)


def test_the_rest_is_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [Muon([{"params": list(ours.parameters()), "lr": 1e-2}], betas=(0.8, 0.9), weight_decay=0.1),
                  torch.optim.AdamW(theirs.parameters(), 1e-2, (0.8, 0.9), weight_decay=0.1, fused=True)]
    for _ in range(4):
        x = torch.randn(6, 5)
        for model, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_parameters_without_a_gradient_stay():
    layer = nn.Linear(3, 3)
    optimizer = Muon(muon_groups(layer, [], 1e-2, 1e-2))
    before = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, before) and not optimizer.state


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "muon": True}])


def test_groups_hold_every_parameter_once():
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    matrices, rest = muon_groups(model, [model[3]], 1e-3, 1e-2, 0.1)
    assert [p is model[1].weight for p in matrices["params"]] == [True] and matrices["lr"] == 1e-2
    assert len(rest["params"]) == len(list(model.parameters())) - 1 and rest["weight_decay"] == 0


def test_a_tokenizer_gives_kernels_to_muon_and_critics_to_adamw():
    run = load_run("tests/fixtures/runs/tokenizer.yaml", [*MUON, "loss.perceptual=0"])
    module = TokenizerModule(run)
    muon, rest, critics = module.parameter_groups()
    assert muon["muon"] and not rest["muon"] and not critics.get("muon", False)
    known = {id(p) for group in (muon, rest) for p in group["params"]}
    assert known == {id(p) for p in module.model.parameters()}
    assert id(module.model.encoder.conv_in.conv.weight) not in {id(p) for p in muon["params"]}


@pytest.mark.parametrize("strategy", ["deepspeed_1", "deepspeed_2", "deepspeed_3"])
def test_deepspeed_is_refused(strategy):
    run = load_run("tests/fixtures/runs/generator.yaml", [*MUON, f"trainer.strategy={strategy}", "trainer.ema_decay=0"])
    with pytest.raises(ValueError, match="optim.optimizer=muon"):
        check_engine(run)


@pytest.mark.parametrize("overrides", [("optim.optimizer=muon",), ("optim.muon_lr=0.01",), ("optim.optimizer=lion",)])
def test_half_a_choice_is_refused(overrides):
    with pytest.raises(ValueError, match="optim\\.(muon_lr|optimizer)"):
        load_run("tests/fixtures/runs/generator.yaml", list(overrides))


PATCHED = ("model.widths=[16,16]", "model.num_res_blocks=[1,1]", "model.strides=[[1,2,2]]", "model.patch=[4,4,4]",
           "model.units=split", *MUON)


def final_weights(out):
    return Tokenizer.from_pretrained(out / "model").state_dict()


@pytest.fixture(scope="module")
def whole(tokenizer_run, tmp_path_factory):
    """A finished run of a patched tokenizer with Muon and critics."""
    out = tmp_path_factory.mktemp("muon")
    with work_on_cpu():
        train.main(["tests/fixtures/runs/tokenizer.yaml", *tokenizer_run(out, *PATCHED)])
    return out


def test_a_resumed_run_gives_the_same_weights(whole, tokenizer_run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints" / "step0000004.ckpt", tmp_path / "checkpoints" / "step0000004.ckpt")
    train.main(["tests/fixtures/runs/tokenizer.yaml", *tokenizer_run(tmp_path, *PATCHED)])
    resumed = final_weights(tmp_path)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final_weights(whole).items())


@pytest.mark.slow
def test_two_processes_equal_one_with_their_batches(launch, generator_run, tmp_path):
    more = (*MUON, "trainer.val_samples=0")
    for processes, batch in ((1, 4), (2, 2)):
        launch(processes, "tests/fixtures/runs/generator.yaml",
               *generator_run(tmp_path / str(processes), *more, "model.dropout=0", "model.condition_dropout=0",
                              f"batch_size={batch}", f"trainer.strategy={'ddp' if processes == 2 else 'auto'}"))
    one, two = (read_metrics(tmp_path / name)["val/loss"] for name in ("1", "2"))
    assert list(two.values()) == pytest.approx(list(one.values()), rel=2e-3)
