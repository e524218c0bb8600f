"""Compiled layers and units train as plain ones, and validation, samples and files know nothing of it."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from nbp.config import load_run
from nbp.training import fit

CHANGES = {"tokenizer": ["model.units=split"], "generator": ["model.dropout=0"]}


class Losses(Callback):
    """The loss of every step, and whether anything was compiled outside of them."""

    def __init__(self):
        self.steps, self.outside = [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.steps.append(float(outputs["loss"]))

    def on_validation_start(self, *_):
        self.before = torch._dynamo.utils.counters["frames"]["total"]

    def on_validation_end(self, *_):
        self.outside.append(torch._dynamo.utils.counters["frames"]["total"] - self.before)


@pytest.mark.slow(seconds=100)
@pytest.mark.parametrize("kind", ("tokenizer", "generator"))
def test_compiled_is_plain(kind, request, tmp_path):
    found = {}
    for compiled in ("true", "false"):
        run = load_run(f"tests/fixtures/runs/{kind}.yaml", request.getfixturevalue(f"{kind}_run")(
            tmp_path / compiled, f"trainer.compile={compiled}", *CHANGES[kind]))
        torch.manual_seed(0)
        module, data, extra = fit.BUILD[kind](run)
        losses = Losses()
        fit.build_trainer(run, module.max_steps, [*extra, losses]).fit(module, data)
        found[compiled] = losses.steps, module.state_dict(), losses.outside
    (compiled, weights, outside), (plain, expected, _) = found["true"], found["false"]
    assert compiled == pytest.approx(plain, rel=1e-4) and len(plain) == module.max_steps
    assert weights.keys() == expected.keys() and set(outside) == {0}
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert list((tmp_path / "true").glob("**/*.png")), "samples were drawn"


def test_published_units_are_refused(load_tokenizer_run):
    with pytest.raises(ValueError, match="trainer.compile=true needs model.units full or split"):
        load_tokenizer_run("trainer.compile=true")
