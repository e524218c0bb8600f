"""A training run from its file to the exported model."""

import sys
from collections.abc import Iterable
from pathlib import Path

from nbp.config import load_run
from nbp.planning.start import start_table
from nbp.training import checkpoints
from nbp.training.fit import fit
from nbp.training.logs import ProfiledSteps
from nbp.training.pace import fit_minutes
from nbp.training.stop_signals import Stopped
from nbp.workflows.converting import checkpoint_to_native
from nbp.workflows.describing import describe_model


def train_and_export(config: str | Path, overrides: Iterable[str] = (), minutes: float | None = None,
                     profile: bool = False) -> int:
    """Train, or go on training, and write `model/` into the run folder; with `minutes`, scale the run's steps to take
    this long here (`nbp.training.pace`); with `profile`, trace a few steps. Returns the exit code: 0, or 128 and the
    number of the signal that stopped the run. ValueError, UserError: as `load_run` and `fit`."""
    run = load_run(config, overrides)
    if minutes is not None:
        run = fit_minutes(run, minutes)
    try:
        trainer = fit(run, start_table, [ProfiledSteps(run.trainer.out)] if profile else [])
    except Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr, flush=True)
        return 128 + stop.signum
    if trainer.is_global_zero:
        model, last = Path(run.trainer.out) / "model", Path(run.trainer.out) / "checkpoints" / checkpoints.LAST
        # Not from the module: under DeepSpeed in bfloat16 only the checkpoint has the weights in float32.
        checkpoint_to_native(last, model)
        describe_model(model, run)
        print(f"wrote {model} from {last.resolve().name}")
    return 0
