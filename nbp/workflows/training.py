"""A training run from its file to the exported model and what its folder says of it."""

import sys
from collections.abc import Iterable
from pathlib import Path

from nbp.config import DataConfig, GeneratorRun, TokenizerRun, build_config, load_run
from nbp.data.dataset import class_names
from nbp.hub.about import About, write_about
from nbp.planning.start import start_table
from nbp.system.files import read_json
from nbp.training import checkpoints
from nbp.training.fit import fit
from nbp.training.logs import ProfiledSteps
from nbp.training.pace import fit_minutes
from nbp.training.stop_signals import Stopped
from nbp.workflows.converting import checkpoint_to_native


def train_and_export(config: str | Path, overrides: Iterable[str] = (), minutes: float | None = None,
                     max_minutes: float | None = None, profile: bool = False) -> int:
    """Train, or go on training, and write `model/` into the run folder; with `minutes`, scale the run's steps to take
    this long here (`nbp.training.pace`), with `max_minutes` only if they would take longer; with `profile`, trace a few
    steps. Returns the exit code: 0, or 128 and the number of the signal that stopped the run. ValueError, UserError: as
    `load_run` and `fit`."""
    run = load_run(config, overrides)
    if (time := minutes or max_minutes) is not None:
        run = fit_minutes(run, time, at_most=minutes is None)
    try:
        trainer = fit(run, start_table, [ProfiledSteps(run.trainer.out)] if profile else [])
    except Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr, flush=True)
        return 128 + stop.signum
    if trainer.is_global_zero:
        model, last = Path(run.trainer.out) / "model", Path(run.trainer.out) / "checkpoints" / checkpoints.LAST
        # Not from the module: under DeepSpeed in bfloat16 only the checkpoint has the weights in float32.
        checkpoint_to_native(last, model)
        write_about(model, about_run(run), run.kind, run.text_tokenizer if isinstance(run, GeneratorRun) else None)
        print(f"wrote {model} from {last.resolve().name}")
    return 0


def about_run(run: TokenizerRun | GeneratorRun) -> About:
    """Names of the data set and, for generators, of its classes; rate, size and length of its clips."""
    classes: list[str] = []
    data = run.data
    if isinstance(run, GeneratorRun) and run.tokens is not None:
        path = Path(run.tokens) / "train" / "meta.json"
        meta = read_json(path)
        classes = list(meta["classes"])
        known = {name: value for name, value in meta["data"].items() if name in DataConfig.__dataclass_fields__}
        data = build_config(DataConfig, known, path)
    elif isinstance(run, GeneratorRun) and data is not None:
        classes = class_names(data)
    assert data is not None
    return About(data.name, classes, data.fps, data.resolution, data.num_frames)
