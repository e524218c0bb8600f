"""Learning-rate schedules at their corners, and which parameters decay."""

import pytest
import torch
from torch import nn

from nbp.config.runs import OptimConfig
from nbp.training.optim import lr_factor, weight_decay_groups


@pytest.mark.parametrize("schedule, halfway", [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedule_corners(schedule, halfway):
    optim = OptimConfig(lr=1.0, betas=[0.9, 0.99], warmup_steps=10, schedule=schedule)
    assert lr_factor(0, optim, 111) == pytest.approx(0.1)
    assert lr_factor(9, optim, 111) == pytest.approx(1.0)
    assert lr_factor(10, optim, 111) == pytest.approx(1.0)
    assert lr_factor(60, optim, 111) == pytest.approx(halfway)
    assert lr_factor(110, optim, 111) == pytest.approx(0.0 if schedule != "constant" else 1.0)


def test_final_ratio_is_where_decay_ends():
    optim = OptimConfig(lr=1.0, betas=[0.9, 0.99], schedule="cosine", final_lr_ratio=0.1)
    assert lr_factor(99, optim, 100) == pytest.approx(0.1)


def test_decay_can_be_kept_for_the_last_steps():
    optim = OptimConfig(lr=1.0, betas=[0.9, 0.99], warmup_steps=10, schedule="linear", decay_steps=20)
    assert [lr_factor(step, optim, 101) for step in (10, 50, 80, 90, 100)] == pytest.approx([1, 1, 1, 0.5, 0])


def test_only_linear_weights_decay():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2), nn.Conv3d(1, 1, 1))
    decayed, plain = weight_decay_groups(module, 1e-3, 0.01)
    assert [p is module[0].weight for p in decayed["params"]] == [True]
    assert len(plain["params"]) == len(list(module.parameters())) - 1 and plain["weight_decay"] == 0


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2).requires_grad_(False)
    assert all(not group["params"] for group in weight_decay_groups(module, 1e-3, 0.01))
    assert isinstance(module.weight, torch.nn.Parameter)
