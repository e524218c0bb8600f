"""How long a run takes on this machine, and the same run in a given time: every count of steps is scaled alike.

Steps are fixed before training begins, so that a run of given minutes resumes and repeats as any other.
"""

import dataclasses
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from nbp.config import to_dict
from nbp.config.checking import Section
from nbp.config.runs import Run, TokenizerRun
from nbp.data.dataset import VideoDataset
from nbp.system.files import read_json, write_json
from nbp.system.timing import timed
from nbp.training import checkpoints
from nbp.training.data import ClipKey
from nbp.training.flops import MicroBatch, build_module, loss_of, micro_batches, num_steps
from nbp.training.logs import kind_of_step
from nbp.training.resume import config_changes
from nbp.training.strategies import resolve_precision
from nbp.training.tokenizer import TokenizerModule

S = TypeVar("S", bound=Section)
TIMED_STEPS = 3
TIMED_CLIPS = 8
OVERHEAD = 1.05     # validation and checkpoints: a margin, of which the quickstart's generator took 1.02 on two cores
FEWEST_STEPS = 20
COSTLY = ("model.", "discriminator.", "loss.", "data.", "images.", "curriculum", "global batch", "trainer.precision",
          "optim.optimizer", "freeze_encoder", "trainer.compile")      # fields by which a step takes another time


def fit_minutes(run: Run, minutes: float, at_most: bool = False) -> Run:
    """The run, of one process, with as many steps as take `minutes` here, start-up left out; validation and checkpoints
    are taken to be 5% of it, more than which validations that generate many clips or have a distance need. What was
    measured is kept in OUT/pace.json and used again. With `at_most` never more steps than it has.
    ValueError: several processes, or less time than `FEWEST_STEPS` steps take."""
    option = "--max-minutes" if at_most else "--minutes"
    if run.trainer.devices * run.trainer.num_nodes > 1:
        raise ValueError(f"{option} measures one process, but trainer.devices={run.trainer.devices} and "
                         f"trainer.num_nodes={run.trainer.num_nodes}; set the run's steps instead")
    path = Path(run.trainer.out) / "pace.json"
    found = read_json(path) if path.is_file() else {}
    now = to_dict(run)
    changes = config_changes(found.get("run", now), now)     # earlier versions do not say of which run
    # A run that goes on keeps its steps, whatever was mistyped once.
    goes_on = run.trainer.resume != "never" and checkpoints.list_checkpoints(path.parent / "checkpoints")
    changed = not goes_on and any(name.startswith(COSTLY) for name in changes)
    if changed or found.get("minutes") != minutes or found.get("steps") != num_steps(run):
        seconds = seconds_of_run(run)
        found = {"minutes": minutes, "steps": num_steps(run), "seconds": seconds, "factor": 60 * minutes / seconds,
                 "run": now}
        write_json(path, found)
    if at_most and found["factor"] >= 1:
        print(f"all {num_steps(run)} steps: about {found['seconds'] / 60:.1f} minutes here", flush=True)
        return run
    if found["factor"] * num_steps(run) < FEWEST_STEPS:
        raise ValueError(f"{option} {minutes:g} is less than {FEWEST_STEPS} steps of this run take here: all "
                         f"{num_steps(run)} would take {found['seconds'] / 60:.0f} minutes")
    scaled = scale_steps(run, found["factor"])
    print(f"{minutes:g} minutes here: {num_steps(scaled)} steps instead of {num_steps(run)}", flush=True)
    return scaled


def seconds_of_run(run: Run) -> float:
    """Estimated seconds of all steps of a run: a few of each kind (clip length, loss terms) are timed here."""
    seconds = 0.0
    for _, group in itertools.groupby(range(num_steps(run)), lambda step: kind_of_step(run, step)):
        first, *others = group
        step_s = with_reading(run, seconds_per_step(run, first), seconds_to_read(run, first))
        seconds += (1 + len(others)) * step_s
    return OVERHEAD * seconds


def with_reading(run: Run, step_s: float, read_s: float) -> float:
    """Seconds of a step of `step_s` whose clips one process reads in `read_s`: beside a GPU's steps workers cost
    nothing until they are slower, on a CPU they take the cores that a step computes on."""
    workers = run.trainer.num_workers
    return max(step_s, read_s / workers) if workers and torch.cuda.is_available() else step_s + read_s / max(1, workers)


def seconds_to_read(run: Run, step: int) -> float:
    """Seconds in which this process reads the clips of one optimizer step, the median of a few; 0 for cached tokens."""
    if run.data is None:
        return 0.0
    clips, times, seconds = VideoDataset(run.data, "train", train=True, as_bytes=True), [], 0.0
    for share, micro_batch in micro_batches(run, step):
        for item in range(1 + TIMED_CLIPS):     # the first one opens what is slow to open
            start = time.perf_counter()
            clips[ClipKey(item * len(clips) // (1 + TIMED_CLIPS), micro_batch.num_frames, 0)]
            times.append(time.perf_counter() - start)
        seconds += share * micro_batch.batch_size * statistics.median(times[-TIMED_CLIPS:])
    return seconds * run.accumulate


def seconds_per_step(run: Run, step: int) -> float:
    """Seconds of one optimizer step of the kind that `step` is, the median of a few on random input."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = build_module(run, step, device=device)
    mixed = resolve_precision(run.trainer.precision) == "bf16-mixed"
    if module.frozen is not None:
        module.frozen.to(device)
    if isinstance(module, TokenizerModule):
        module.lower_frozen(mixed)
    optimizer = module.configure_optimizers()["optimizer"]

    def micro_step(micro_batch: MicroBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = loss_of(module, micro_batch)
        loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    times = []
    for _ in range(1 + TIMED_STEPS):        # the first one warms up
        seconds = sum(share * run.accumulate * timed(partial(micro_step, micro_batch))
                      for share, micro_batch in micro_batches(run, step))
        times.append(seconds + timed(update))
    return statistics.median(times[1:])


def scale_steps(run: Run, factor: float) -> Run:
    """The run with every count of steps multiplied, each at least 1 if it was; the moving average's horizon as well."""
    def scaled(section: S, *names: str) -> S:
        counts = {name: getattr(section, name) for name in names}
        return dataclasses.replace(section, **{name: max(1, round(factor * count)) if count else count
                                               for name, count in counts.items()})

    optim = scaled(run.optim, "warmup_steps", "decay_steps")
    trainer = scaled(run.trainer, "val_every_steps", "checkpoint_every_steps")
    if trainer.ema_decay:
        trainer.ema_decay = max(0.0, 1 - (1 - trainer.ema_decay) / factor)
    if not isinstance(run, TokenizerRun):
        return dataclasses.replace(scaled(run, "max_steps"), optim=optim, trainer=trainer)
    loss = scaled(run.loss, "perceptual_start_step", "adversarial_start_step", "adversarial_warmup_steps")
    curriculum = [scaled(phase, "steps") for phase in run.curriculum]
    return dataclasses.replace(run, optim=optim, trainer=trainer, loss=loss, curriculum=curriculum)
