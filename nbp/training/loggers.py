"""Where metrics go: CSV always, on disk after every logged step, and wandb where the run names a project."""

import csv
import os
import secrets
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from nbp.system.files import atomic_path, write_text


def build_loggers(config):
    """Loggers of a `TrainerConfig`."""
    loggers = [MetricsLog(config.out)]
    if config.wandb_project and os.environ.get("WANDB_MODE") != "disabled":
        loggers.append(WandbLogger(project=config.wandb_project, save_dir=config.out, offline=not wandb_key(),
                                   id=wandb_id(config.out), resume="allow"))
    return loggers


def wandb_key():
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


def wandb_id(out):
    """Id of a run folder's wandb run, kept in it: a resumed run goes on in the same one."""
    path = Path(out) / "wandb_id.txt"
    if not path.is_file():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def log_media(trainer, name, picture, video):
    """Send a picture and a video file to wandb, where there is one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(picture)])
            logger.log_video(f"{name}_video", [str(video)])


class MetricsLog(CSVLogger):
    """Lightning's CSV logger with `logs/version_N/metrics.csv` on disk after every step it logs.

    Args:
        out: run folder.
    """

    def __init__(self, out):
        super().__init__(out, name="logs", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self):
        if self._experiment is None:
            self._experiment = _WholeRows(log_dir=self.log_dir)
        return self._experiment


class _WholeRows(ExperimentWriter):
    """A new column means a new header: the file is replaced whole, where Lightning rewrites it in place."""

    def _rewrite_with_new_header(self, fieldnames):
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (atomic_path(self.metrics_file_path) as temporary,
              open(temporary, "w", newline="", encoding="utf-8") as file):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
