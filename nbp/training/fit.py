"""One training run from its configuration to its last step: resumed, watched, rolled back, and stopped on a signal."""

import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities import rank_zero_only

from nbp.config import TrainerConfig
from nbp.config.runs import Run
from nbp.system.command import UserError
from nbp.system.distributed import check_driver
from nbp.system.files import check_writable, held
from nbp.training import checkpoints, generator, tokenizer
from nbp.training.data import ClipDataModule
from nbp.training.guard import Guard
from nbp.training.logs import StepLines, Throughput, build_loggers
from nbp.training.module import MovingAverage, RollBack, TrainingModule
from nbp.training.resume import Resume
from nbp.training.saving import AtomicCheckpointIO, Checkpoints
from nbp.training.strategies import FullInput, build_strategy, check_engine, check_processes, resolve_precision

BUILD: dict[str, Callable[[Any, bool], tuple[TrainingModule, ClipDataModule, list[Callback]]]] = {
    "tokenizer": tokenizer.build, "generator": generator.build}


def fit(run: Run, describe: Callable[[Run], str] | None = None, callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    """Train to the last step; goes back to the last good checkpoint where the guard asks for it.

    `describe` makes the words that the first process prints before the first step; `callbacks` are added to the run's.
    `checkpoints/last.ckpt` is then the trained model, where the guard did not doubt the last steps.

    Raises:
        ValueError: a configuration that cannot run here, or does not fit the checkpoint to resume from.
        UserError: training went wrong again after `trainer.max_rollbacks` rollbacks.
        Stopped: a signal asked to stop; the checkpoint is written.
    """
    check_driver()
    check_processes(run.trainer)
    # Stored as what it is here: on another machine `auto` may be something else, and a resumed run must notice.
    run = dataclasses.replace(run, trainer=dataclasses.replace(
        run.trainer, precision=resolve_precision(run.trainer.precision)))
    check_engine(run)
    check_writable(run.trainer.out, "trainer.out=")
    rank = rank_zero_only.rank  # type: ignore[attr-defined]
    with contextlib.nullcontext() if rank else held(run.trainer.out):
        return _fit(run, describe, callbacks, rank)


def _fit(run: Run, describe: Callable[[Run], str] | None, callbacks: Sequence[Callback],
         rank: int | None) -> pl.Trainer:
    start, rollbacks, resume = find_checkpoint(run.trainer), 0, Resume(run)
    if run.trainer.resume == "never" and start is None and not rank and (old := checkpoints.set_aside(
            Path(run.trainer.out) / "checkpoints")):
        print(f"trainer.resume=never: earlier checkpoints are now in {old}", file=sys.stderr, flush=True)
    while True:
        pl.seed_everything(run.trainer.seed, workers=True)
        module, data, extra_callbacks = BUILD[run.kind](run, start is None)
        module.min_rollbacks = rollbacks
        trainer = build_trainer(run, module.max_steps, [*extra_callbacks, *callbacks], resume)
        if describe is not None and trainer.is_global_zero and not rollbacks:
            print(describe(run), flush=True)
        try:
            trainer.fit(module, data, ckpt_path=start)
            return trainer
        except RollBack as alarm:
            rollbacks = module.num_rollbacks + 1
            start = _roll_back(run.trainer, trainer, resume.chosen, rollbacks, str(alarm))
        del trainer, module, data, extra_callbacks
        gc.collect()  # the old engine's memory, before the new one takes its own
        torch.cuda.empty_cache()


def build_trainer(run: Run, max_steps: int, extra_callbacks: list[Callback],
                  resume: Resume | None = None) -> pl.Trainer:
    """Lightning trainer of a run of `max_steps` optimizer steps with its kind's callbacks; `resume` None: a new one."""
    resume = resume or Resume(run)
    config, clip = run.trainer, run.optim.gradient_clip
    guard, precision = Guard(config.guard_patience), resolve_precision(config.precision)
    deepspeed, terminal = config.strategy.startswith("deepspeed"), sys.stderr.isatty()
    plugins: list[Any] = [FullInput(precision) if deepspeed else AtomicCheckpointIO(resume)]  # type: ignore[arg-type]
    if config.devices * config.num_nodes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        plugins.append(LightningEnvironment())      # else a job of SLURM is asked for as many processes as it has tasks
    return pl.Trainer(
        accelerator="auto", devices=config.devices, num_nodes=config.num_nodes,
        strategy=build_strategy(config.strategy, config.devices * config.num_nodes, clip, resume),
        precision=None if deepspeed else precision,  # type: ignore[arg-type]
        max_steps=max_steps, accumulate_grad_batches=run.accumulate,
        gradient_clip_val=None if deepspeed or not clip else clip,
        val_check_interval=config.val_every_steps * run.accumulate, check_val_every_n_epoch=None,
        limit_val_batches=config.val_batches, num_sanity_val_steps=0, log_every_n_steps=config.log_every_steps,
        use_distributed_sampler=False, default_root_dir=config.out, logger=build_loggers(config),
        plugins=plugins,
        enable_model_summary=False, enable_progress_bar=terminal,
        callbacks=[pl.callbacks.LearningRateMonitor("step"), MovingAverage(),
                   pl.callbacks.RichProgressBar() if terminal else StepLines(), Throughput(run), guard,
                   *extra_callbacks, Checkpoints(guard, resume)])


def find_checkpoint(config: TrainerConfig) -> str | None:
    """Checkpoint or folder of checkpoints to resume from, or None; a SLURM job that was queued again goes on from what
    it has saved, not from where it began. ValueError: the one that is named does not exist."""
    folder = Path(config.out) / "checkpoints"
    saved = os.fspath(folder) if checkpoints.list_checkpoints(folder) else None
    if config.resume == "auto" or (saved and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"):
        return saved
    if config.resume != "never":
        if not Path(config.resume).exists():
            raise ValueError(f"trainer.resume={config.resume!r} does not exist; accepted: auto, never or a checkpoint")
        return config.resume
    return None


def _roll_back(config: TrainerConfig, trainer: pl.Trainer, started_from: Path | None, rollbacks: int,
               reason: str) -> str | None:
    """Say what happened and return where to go on, None for the start; gives up after `max_rollbacks`.

    The newest checkpoint that this attempt wrote. If it wrote none, the one that it started from; after a rollback the
    one before that, as trouble may have begun, unnoticed, before it was written.
    """
    if rollbacks > config.max_rollbacks:
        raise UserError(f"training stops: {reason}, and it has been rolled back {config.max_rollbacks} times "
                        "(trainer.max_rollbacks). A lower learning rate, a longer warm-up or gradient clipping may "
                        "help; the last good checkpoint is kept")
    writer: Any = trainer.checkpoint_callback
    target: Path | None = writer.newest_written
    if target is None:
        target = started_from
        limit = None if started_from is None else checkpoints.step_of(Path(started_from).resolve())
        if rollbacks > 1 and limit is not None:
            found = checkpoints.list_checkpoints(Path(config.out) / "checkpoints")
            target = next((path for path in found if (checkpoints.step_of(path) or 0) < limit), started_from)
    if trainer.is_global_zero:
        print(f"guard: {reason}; rollback {rollbacks} of at most {config.max_rollbacks} to "
              f"{target or 'the start'}, with other clips and random numbers", file=sys.stderr, flush=True)
    return None if target is None else os.fspath(target)
