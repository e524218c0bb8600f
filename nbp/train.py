"""Train a tokenizer or a generator: python -m nbp.train CONFIG [section.field=value ...]

The run folder `trainer.out` receives config.yaml, checkpoints/, logs/, samples/ and at the
end model/ (native format; the moving average where there is one). Running the same command again
resumes. Several processes: torchrun --nproc-per-node=N -m nbp.train CONFIG trainer.devices=N ...
"""

import argparse
import os
import sys
from pathlib import Path

import pytorch_lightning as pl

from nbp.config import load_run, save_config
from nbp.training import callbacks, generator_run, tokenizer_run
from nbp.training.strategies import build_strategy, resolve_precision


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m nbp.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="run file, e.g. configs/tokenizer_procgen.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="or a YAML file to merge")
    options = parser.parse_args(arguments)
    run = load_run(options.config, options.overrides)
    out = Path(run.trainer.out)

    pl.seed_everything(run.trainer.seed, workers=True)
    build = {"tokenizer": tokenizer_run.build, "generator": generator_run.build}[run.kind]
    module, data, extra_callbacks = build(run)
    trainer = build_trainer(run.trainer, module.max_steps, run.optim.gradient_clip, extra_callbacks)
    if trainer.is_global_zero:
        print(run.trainer.describe_batch(data.phases[-1].batch_size), flush=True)
        save_config(run, out / "config.yaml")
    trainer.fit(module, data, ckpt_path=find_checkpoint(run.trainer))
    if trainer.is_global_zero:
        module.averaged.save_pretrained(out / "model")
        print(f"wrote {out / 'model'}")


def build_trainer(config, max_steps, gradient_clip, extra_callbacks):
    """Lightning trainer for a `TrainerConfig`."""
    out = Path(config.out)
    strategy = build_strategy(config.strategy, gradient_clip)
    deepspeed = config.strategy.startswith("deepspeed")
    return pl.Trainer(
        accelerator="auto", devices=config.devices, num_nodes=config.num_nodes, strategy=strategy,
        precision=resolve_precision(config.precision), max_steps=max_steps, accumulate_grad_batches=config.accumulate,
        gradient_clip_val=None if deepspeed or not gradient_clip else gradient_clip,
        val_check_interval=config.val_every_steps * config.accumulate, check_val_every_n_epoch=None,
        limit_val_batches=config.val_batches, num_sanity_val_steps=0, log_every_n_steps=config.log_every_steps,
        use_distributed_sampler=False, default_root_dir=out, logger=build_loggers(config),
        plugins=[] if deepspeed else [callbacks.AtomicCheckpointIO()], enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        callbacks=[
            pl.callbacks.ModelCheckpoint(out / "checkpoints", filename="{step:07d}", save_last=True, save_top_k=1,
                                         every_n_train_steps=config.checkpoint_every_steps, enable_version_counter=False),
            pl.callbacks.LearningRateMonitor("step"), callbacks.MovingAverage(), callbacks.progress_callback(),
            *extra_callbacks])


def build_loggers(config):
    """CSV always; wandb where a project is named (set WANDB_MODE=offline to work without a key)."""
    loggers = [pl.loggers.CSVLogger(config.out, name="logs")]
    if config.wandb_project:
        loggers.append(pl.loggers.WandbLogger(project=config.wandb_project, save_dir=config.out))
    return loggers


def find_checkpoint(config):
    """Checkpoint to resume from: `last.ckpt` for resume=auto where it exists, or the given path, or None.

    Raises:
        ValueError: a given path that does not exist.
    """
    if config.resume == "never":
        return None
    path = Path(config.out) / "checkpoints" / "last.ckpt" if config.resume == "auto" else Path(config.resume)
    if path.exists():
        return os.fspath(path)
    if config.resume != "auto":
        raise ValueError(f"trainer.resume={config.resume!r} does not exist; accepted: auto, never or a checkpoint")
    return None


if __name__ == "__main__":
    main()
