"""What `nbp.training.saving.pause_between_steps` relies on in Lightning's private loop state, with a toy model.

A Lightning that keeps this state otherwise fails here and says which of its parts no longer does what it did.
"""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nbp.training.data import StepLoader
from nbp.training.saving import pause_between_steps, set_batches

STEPS, VALIDATE_EVERY = 6, 2
PARTS = {"epoch_progress": {"total", "current"},
         "epoch_loop.state_dict": {"_batches_that_stepped"},
         "epoch_loop.batch_progress": {"total", "current", "is_last_batch"},
         "epoch_loop.val_loop.batch_progress": {"total", "current", "is_last_batch"}}


class Toy(pl.LightningModule):
    """Notes which batches it trains on, after how many steps it validates, and at which step it logs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.validated, self.start = [], [], None

    def on_train_start(self):
        self.start = self.global_step

    def training_step(self, batch, batch_idx):
        self.trained.append((batch_idx, int(batch)))
        self.log("loss", self.weight.sum())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Logged(pl.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps += [step] if "loss" in metrics else []


class SaveAt(pl.Callback):
    """Writes a checkpoint after `step` steps: between two steps, or inside the validation that is due there."""

    def __init__(self, step, accumulate, inside, path):
        self.step, self.accumulate, self.inside, self.path = step, accumulate, inside, path

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.inside and batch_idx == self.step * self.accumulate:
            trainer.save_checkpoint(self.path)

    def on_validation_batch_start(self, trainer, *_):
        if self.inside and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer, module):
        if self.step == STEPS and not self.inside:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        loop = checkpoint["loops"]["fit_loop"]
        for part, names in PARTS.items():
            assert names <= loop.get(part, {}).keys(), f"Lightning's loop state has no {part} with {names} any more"
        for part in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
            assert loop[part]["total"].keys() == {"ready", "started", "processed", "completed"}, part
        pause_between_steps(loop, trainer.global_step, self.accumulate, validated=not trainer.validating)


class From(torch.utils.data.Sampler):
    """Batches of one number each, from a start on; as long as the whole run."""

    def __init__(self, start, count):
        self.start, self.count = start, count

    def __iter__(self):
        return iter([number] for number in range(self.start, self.count))

    def __len__(self):
        return self.count


def train(folder, accumulate, start=0, path=None, callback=None):
    """A run of STEPS steps, from the checkpoint `path` of step `start` on; returns the module and the logged steps."""
    module, logger, count = Toy(), Logged(), STEPS * accumulate
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, accumulate_grad_batches=accumulate, logger=logger, log_every_n_steps=1,
        val_check_interval=VALIDATE_EVERY * accumulate, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        callbacks=[callback] if callback else [])
    trainer.fit(module, StepLoader(range(count), batch_sampler=From(start * accumulate, count)), DataLoader([0]),
                ckpt_path=path)
    return module, logger.steps


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step, inside, validations", [(3, False, [4, 6]), (4, False, [6]), (4, True, [4, 6]),
                                                       (STEPS, False, [])])
def test_a_run_goes_on_from_any_pause_as_if_there_had_been_none(tmp_path, accumulate, step, inside, validations):
    path = tmp_path / "pause.ckpt"
    whole, logged = train(tmp_path, accumulate, callback=SaveAt(step, accumulate, inside, path))
    assert logged == list(range(STEPS)) and whole.validated == [2, 4, 6]
    resumed, logged_again = train(tmp_path, accumulate, step, path)
    rest = whole.trained[step * accumulate:]
    assert resumed.start in (step, None if step == STEPS else step), "global_step is not read from optimizer_progress"
    assert resumed.trained == rest, "epoch_loop.batch_progress no longer says which batch comes next"
    assert resumed.validated == validations, "val_loop no longer tells a pause inside a validation from one after it"
    assert logged_again == logged[step:], "_batches_that_stepped no longer counts the rows of the logs"


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (4, 2)])
def test_a_run_goes_on_with_another_number_of_micro_batches(tmp_path, before, after):
    path = tmp_path / "pause.ckpt"
    train(tmp_path, before, callback=SaveAt(3, before, False, path))
    stored = torch.load(path, weights_only=True)
    set_batches(stored["loops"]["fit_loop"], 3 * after)
    torch.save(stored, path)
    resumed, logged = train(tmp_path, after, 3, path)
    assert resumed.trained == [(number, number) for number in range(3 * after, STEPS * after)]
    assert resumed.validated == [4, 6] and logged == [3, 4, 5]
