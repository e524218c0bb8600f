"""A step of training does not wait for its device: nothing reads a tensor's value on the host, or its data's size."""

import traceback

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from nbp.config import load_run
from nbp.training import fit, guard
from nbp.training.guard import Guard

WAITING = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "is_nonzero", "item", "unique"}
# Look at block ids, and at arguments on the CPU only.
ON_THE_HOST = {"attention_mask", "span_masks", "check_range", "_labels"}
OPTIMIZERS = {"adamw": (), "muon": ("optim.optimizer=muon", "optim.muon_lr=0.01")}
RUNS = {"tokenizer": "tests/fixtures/runs/tokenizer.yaml", "generator": "tests/fixtures/runs/generator.yaml"}


class Waits(TorchDispatchMode, Callback):
    """Names of the operations that wait, step by step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        if name in WAITING and not any(frame.name in ON_THE_HOST for frame in traceback.extract_stack()):
            self.steps[-1].append(name)
        return function(*args, **(kwargs or {}))

    def on_train_batch_start(self, *_):
        self.steps.append([])
        self.__enter__()

    def on_train_batch_end(self, *_):
        self.__exit__(None, None, None)


@pytest.fixture
def build(request, tmp_path):
    def build(kind, *overrides):
        return load_run(RUNS[kind], request.getfixturevalue(f"{kind}_run")(
            tmp_path / "run", "trainer.val_samples=0", "trainer.log_every_steps=100",
            "trainer.checkpoint_every_steps=100", "trainer.val_every_steps=6", *overrides))
    return build


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", RUNS)
def test_steps_do_not_wait(build, kind, optimizer, accumulate, monkeypatch):
    monkeypatch.setattr("nbp.system.progress.LogLines.every_s", float("inf"))        # a line shows the loss
    run, waits = build(kind, f"trainer.accumulate={accumulate}", *OPTIMIZERS[optimizer]), Waits()
    module, data, extra = fit.BUILD[kind](run)
    fit.build_trainer(run, module.max_steps, [*extra, waits]).fit(module, data)
    assert module.skips_on_device and len(waits.steps) == module.max_steps * accumulate >= 4
    between = waits.steps[accumulate:-accumulate]                               # the first and the last are reported
    assert between == [[]] * len(between), waits.steps


def test_waits_are_seen():
    waits = Waits()
    waits.on_train_batch_start()
    float(torch.ones(2).sum()), bool(torch.ones(()) == 1), torch.ones(3).nonzero(), torch.bincount(torch.ones(1).long())
    waits.on_train_batch_end()
    assert waits.steps == [["_local_scalar_dense", "_local_scalar_dense", "nonzero", "bincount"]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", RUNS)
def test_a_step_with_a_micro_batch_that_is_not_finite_is_skipped(build, kind, optimizer, monkeypatch):
    run = build(kind, "trainer.accumulate=2", *OPTIMIZERS[optimizer])
    module, data, extra = fit.BUILD[kind](run)
    skip, before, calls = module.skip_if_not_finite, [], []

    def poisoned(loss):
        calls.append(module.global_step)
        if len(calls) in (5, 7):      # the first micro-batch of the third step, and of the fourth, which is whole
            before.append([parameter.detach().clone() for parameter in module.model.parameters()])
        return skip(loss * (float("nan") if len(calls) == 5 else 1))

    monkeypatch.setattr(module, "skip_if_not_finite", poisoned)
    fit.build_trainer(run, module.max_steps, extra).fit(module, data)
    assert module.skips_on_device and int(module.skipped_steps) == 1 and calls[4:7] == [2, 2, 3]
    assert all(torch.equal(one, other) for one, other in zip(*before))
    assert not all(torch.equal(one, other) for one, other in zip(before[1], module.model.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", RUNS)
def test_the_optimizers_kernel_skips_as_a_step_without_gradients(build, kind, optimizer, monkeypatch, tmp_path):
    """The same weights and optimizer, bit for bit, whether a step is skipped on the device or by the host."""
    found = []
    for on_device in (True, False):
        run = build(kind, f"trainer.out={tmp_path / str(on_device)}", "trainer.guard_patience=0",
                    *OPTIMIZERS[optimizer])
        torch.manual_seed(0)
        module, data, extra = fit.BUILD[kind](run)
        skip, start = module.skip_if_not_finite, module.on_train_start

        def poisoned(loss, module=module, skip=skip):
            return skip(loss * (float("nan") if module.global_step == 2 else 1))

        def on_train_start(module=module, start=start, on_device=on_device):
            start()
            module.skips_on_device = on_device

        monkeypatch.setattr(module, "skip_if_not_finite", poisoned)
        monkeypatch.setattr(module, "on_train_start", on_train_start)
        trainer = fit.build_trainer(run, module.max_steps, extra)
        trainer.fit(module, data)
        assert int(module.skipped_steps) == 1
        states = trainer.optimizers[0].state_dict()["state"].values()
        found.append([*module.state_dict().values(), *(tensor for state in states for tensor in state.values())])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_a_guard_that_looks_at_several_steps_at_once_says_the_same(build, monkeypatch, capsys):
    """It names the step of the trouble, and all steps are judged before a checkpoint is written."""
    monkeypatch.setitem(guard.LOOK_EVERY, "cpu", 4)
    judged = []
    judge = Guard.judge_step
    monkeypatch.setattr(Guard, "judge_step", lambda self, values, shape="": (
        judged.append(values["loss"]), judge(self, {"loss": float("nan")} if len(judged) == 2 else values, shape)))
    run = build("generator", "trainer.checkpoint_every_steps=3", "trainer.guard_patience=3")
    module, data, extra = fit.BUILD["generator"](run)
    fit.build_trainer(run, module.max_steps, extra).fit(module, data)
    assert len(judged) == module.max_steps
    assert "guard, step 2: loss is nan (1 steps in a row)" in capsys.readouterr().err
