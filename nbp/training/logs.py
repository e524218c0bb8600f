"""What a run reports while it trains: CSV always, wandb where it names a project, speed, progress, a trace if asked."""

import csv
import itertools
import math
import os
import resource
import secrets
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from nbp.config import TokenizerRun, TrainerConfig
from nbp.config.runs import Run
from nbp.system.files import atomic_path, write_text
from nbp.system.profiling import Trace
from nbp.system.progress import LogLines
from nbp.training.data import Batch
from nbp.training.flops import flops_per_step, peak_flops
from nbp.training.module import TrainingModule


def build_loggers(config: TrainerConfig) -> list[Logger]:
    """CSV, and wandb where it is on."""
    loggers: list[Logger] = [MetricsLog(config.out)]
    if config.wandb_project and os.environ.get("WANDB_MODE") != "disabled":
        loggers.append(WandbLogger(project=config.wandb_project, save_dir=config.out, offline=not wandb_key(),
                                   id=wandb_id(config.out), resume="allow"))
    return loggers


def wandb_key() -> bool:
    """Whether wandb may go online: a key in WANDB_API_KEY or from `wandb login`, and WANDB_MODE not set otherwise."""
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"] == "online"
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].rstrip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_id(out: str | Path) -> str | None:
    """Id of a run folder's wandb run, kept in it: a resumed run goes on in the same one. None: not on rank 0."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return None
    path = Path(out) / "wandb_id.txt"
    if not path.is_file():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


class MetricsLog(CSVLogger):
    """Lightning's CSV logger with `logs/version_N/metrics.csv` on disk after every step it logs."""

    def __init__(self, out: str) -> None:
        super().__init__(out, name="logs", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _WholeRows(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _WholeRows(ExperimentWriter):
    """A new column means a new header: the file is replaced whole, where Lightning rewrites it in place."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (atomic_path(self.metrics_file_path) as temporary,
              open(temporary, "w", newline="", encoding="utf-8") as file):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class StepLines(Callback):
    """Step, rate, time left and loss every ten seconds, one line each; for logs, where a live bar is unreadable."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._lines = LogLines(trainer.max_steps, "train", "steps", trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            self._lines.show(trainer.global_step, lambda: f", loss {loss(trainer):.4f}",
                             now=trainer.global_step >= trainer.max_steps)


def loss(trainer: pl.Trainer) -> float:
    """The last step's; a GPU is waited for."""
    return float(trainer.callback_metrics.get("train/loss", math.nan))


class Throughput(Callback):
    """Clips, tokens and model FLOPs per second over all devices, since the last logged step, validation left out."""

    def __init__(self, run: Run) -> None:
        self.run, self.every = run, run.trainer.log_every_steps
        self._flops: dict[tuple[int, ...], float] = {}
        self._clips = self._tokens = self._steps = 0

    def on_train_start(self, *_: object) -> None:
        self._restart()

    def on_validation_end(self, *_: object) -> None:
        self._restart()  # a window with a validation in it would say nothing

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._clips = self._tokens = self._steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, outputs: object,  # type: ignore[override]
                           batch: Batch, batch_idx: int) -> None:
        clips = len(batch["label"])
        self._clips += clips
        self._tokens += clips * module.tokens_per_clip(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if trainer.global_step % self.every:
            return
        seconds, world = time.perf_counter() - self._start, trainer.world_size
        tflops = self._step_flops(module, trainer.global_step - 1) * self._steps / seconds / 1e12
        values = {"clips_per_s": self._clips * world / seconds, "tokens_per_s": self._tokens * world / seconds,
                  "tflops": tflops, "memory_gib": memory_gib(module.device)}
        if module.device.type == "cuda" and (peak := peak_flops(torch.cuda.get_device_name(module.device))):
            values["mfu"] = tflops * 1e12 / (peak * world)
        module.log_dict({f"perf/{name}": float(value) for name, value in values.items()})
        self._restart()

    def _step_flops(self, module: TrainingModule, step: int) -> float:
        kind = kind_of_step(self.run, step)
        if kind not in self._flops:
            # The network that tokenizes is the module's own: its path need not be a folder.
            self._flops[kind] = flops_per_step(self.run, step, getattr(module.frozen, "config", None))
        return self._flops[kind]


class ProfiledSteps(Callback):
    """Traces three micro-batches behind the first two into OUT/profile, loading of data included."""

    def __init__(self, out: str | Path) -> None:
        self.trace = Trace(Path(out) / "profile", torch.profiler.schedule(wait=0, warmup=2, active=3, repeat=1))

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            self.trace.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            self.trace.step()

    def on_train_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            self.trace.stop()


def kind_of_step(run: Run, step: int) -> tuple[int, ...]:
    """Steps of one kind cost the same: (phase of the curriculum, perceptual loss on, critics on); () for generators."""
    if not isinstance(run, TokenizerRun):
        return ()
    ends = itertools.accumulate(phase.steps for phase in run.curriculum)
    return (sum(step >= end for end in ends), step >= run.loss.perceptual_start_step,
            step >= run.loss.adversarial_start_step)


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far, in GiB: of its GPU, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
