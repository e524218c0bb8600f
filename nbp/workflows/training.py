"""A training run from its file to the exported model and what its folder says of it."""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from nbp.config import DataConfig, GeneratorRun, TokenizerRun, build_config, load_run
from nbp.data.annotations import folder_of, read_annotations
from nbp.data.dataset import class_names
from nbp.data.remote import open_folder
from nbp.data.video_io import VideoError, probe
from nbp.hub.about import About, read_about, write_about
from nbp.hub.locating import WEIGHTS
from nbp.planning.start import start_table
from nbp.system.files import sha256
from nbp.training import checkpoints
from nbp.training.fit import fit
from nbp.training.logs import ProfiledSteps
from nbp.training.pace import fit_minutes
from nbp.training.stop_signals import Stopped
from nbp.workflows.converting import checkpoint_to_native

MAX_PROBED = 20     # training files that are asked for their frame rate


def train_and_export(config: str | Path, overrides: Iterable[str] = (), minutes: float | None = None,
                     max_minutes: float | None = None, profile: bool = False) -> int:
    """Train, or go on training, and write `model/` into the run folder; with `minutes`, scale the run's steps to take
    this long here (`nbp.training.pace`), with `max_minutes` only if they would take longer; with `profile`, trace a few
    steps. Returns the exit code: 0, or 128 and the number of the signal that stopped the run. ValueError, UserError: as
    `load_run` and `fit`."""
    run = load_run(config, overrides)
    model = Path(run.trainer.out) / "model"
    known = read_about(model)       # a damaged one is found before the run
    if (time := minutes or max_minutes) is not None:
        run = fit_minutes(run, time, at_most=minutes is None)
    try:
        trainer = fit(run, start_table, [ProfiledSteps(run.trainer.out)] if profile else [])
    except Stopped as stop:
        how = "the same command" if run.trainer.resume == "auto" else "the same command with trainer.resume=auto"
        print(f"{stop}; {how} goes on from here", file=sys.stderr, flush=True)
        return 128 + stop.signum
    if trainer.is_global_zero:
        last = Path(run.trainer.out) / "checkpoints" / checkpoints.LAST
        before = sha256(model / WEIGHTS) if (model / WEIGHTS).is_file() else None
        # Not from the module: under DeepSpeed in bfloat16 only the checkpoint has the weights in float32.
        checkpoint_to_native(last, model)
        # What a user wrote there stays; scores are those of the same weights only.
        about = dataclasses.replace(about_run(run), sampling=known.sampling,
                                    scores=known.scores if before == sha256(model / WEIGHTS) else [])
        write_about(model, about, run.kind, run.text_tokenizer if isinstance(run, GeneratorRun) else None)
        print(f"wrote {model} from {last.resolve().name}")
    return 0


def about_run(run: TokenizerRun | GeneratorRun) -> About:
    """Names of the data set and, for generators, of its classes; rate, size and length of its clips."""
    classes: list[str] = []
    data = run.data
    if isinstance(run, GeneratorRun) and run.tokens is not None:
        path = f"{run.tokens}/train"
        content = open_folder(path).read("meta.json")
        assert content is not None      # the training has read it
        meta = json.loads(content)
        classes = list(meta["classes"])
        known = {name: value for name, value in meta["data"].items() if name in DataConfig.__dataclass_fields__}
        data = build_config(DataConfig, known, f"{path}/meta.json")
    elif isinstance(run, GeneratorRun) and data is not None:
        classes = class_names(data)
    assert data is not None
    return About(data.name, classes, data.fps or common_rate(data), data.resolution, data.num_frames)


def common_rate(data: DataConfig) -> float | None:
    """Frames a second of the training files, asked of some of them; None where they differ or are not here."""
    path = Path(data.root) / data.train_list
    if not path.is_file():
        return None
    rows = read_annotations(path, data.root)
    root, rates = folder_of(data.root, rows), set()
    for clip, _ in rows[::-(-len(rows) // MAX_PROBED)]:
        try:
            rates.add(round(probe(root / clip).fps, 2))
        except VideoError:      # a bad file, which training left out as well
            continue
    return rates.pop() if len(rates) == 1 else None
