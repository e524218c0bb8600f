"""What a run shows and measures at each validation, beside the losses of its module.

Pictures: `samples/stepNNN.png` and `.mp4`, and wandb where it is on. Frechet video distance on a small fixed validation
set, as a metric that can choose the best checkpoint: between the same clips at every validation, real against
reconstructed (rFVD) or against generated (gFVD). Few clips bias it upwards, so it compares checkpoints of one run only.
Legend: frames uint8 (T, H, W, 3).
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from nbp.config import TrainerConfig
from nbp.data.clips import video_to_frames
from nbp.data.sheet import contact_sheet, write_picture
from nbp.data.video_writing import write_video
from nbp.evaluation.fvd import MIN_CLIPS
from nbp.evaluation.i3d import MIN_FRAMES
from nbp.evaluation.metrics import FrechetDistance
from nbp.evaluation.networks import FeatureNetwork, load_network, network_features
from nbp.evaluation.protocols import Protocol
from nbp.hub.fetch import fetch_i3d
from nbp.training.data import Batch, ClipDataModule, float_video, spread_count
from nbp.training.module import TrainingModule

NUM_FRAMES = 5   # of each clip in a picture
FPS = 8.0
ClipsOf = Callable[[Any, Batch, int], np.ndarray]   # (module, batch, seed) -> frames (B, T, H, W, 3)
PROTOCOL = Protocol("validation", network="i3d-tf", quantize="round", fit="squash", num_frames=None)


def to_frames(video: Tensor) -> np.ndarray:
    """Float video (B, 3, T, H, W), also of a model that has gone wrong -> uint8 (B, T, H, W, 3)."""
    return video_to_frames(torch.nan_to_num(video.float()).cpu())


class Samples(Callback):
    """Writes what `rows`, function(module, batch, output of `validation_step`) -> frames (n, T, H, W, 3) each, makes of
    the first `config.val_samples` validation clips: a picture, each clip a row of frames, and a video at `fps`, or 8,
    each entry of the rows a row of clips; `name` is that in wandb."""

    def __init__(self, config: TrainerConfig, name: str, rows: Callable[[Any, Batch, Any], list[np.ndarray]],
                 fps: float | None) -> None:
        self.config, self.name, self.rows, self.fps = config, name, rows, fps

    def on_validation_batch_end(self, trainer: pl.Trainer, module: TrainingModule,  # type: ignore[override]
                                outputs: Tensor | None, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        count = self.config.val_samples
        if batch_idx or not count:
            return
        values: Any = batch
        first: Any = {name: value[:count] for name, value in values.items()}
        # On every rank: under ZeRO-3 none can generate by itself.
        rows = self.rows(module, first, None if outputs is None else outputs[:count])
        if not trainer.is_global_zero:
            return
        path = Path(self.config.out) / "samples" / f"step{trainer.global_step:07d}"
        picture = contact_sheet([clip for clips in zip(*rows) for clip in clips], NUM_FRAMES)
        write_picture(path.with_suffix(".png"), picture)
        write_video(path.with_suffix(".mp4"), np.concatenate([np.concatenate(row, 2) for row in rows], 1),
                    self.fps or FPS)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(self.name, [str(path.with_suffix(".png"))])
                logger.log_video(f"{self.name}_video", [str(path.with_suffix(".mp4"))])


class ValidationFVD(Callback):
    """Logs the distance `name`, "val/rfvd" or "val/gfvd", after every validation, over up to `num_clips` validation
    clips, evenly spaced over the list. `real` is function(module, batch) -> frames uint8 (B, T, H, W, 3), `fake` gives
    frames like those, clip i of a rank with its own seed; `network` is called with the module's device at the first
    validation."""

    def __init__(self, name: str, num_clips: int, real: Callable[[Any, Batch], np.ndarray], fake: ClipsOf,
                 network: Callable[[torch.device], FeatureNetwork], num_features: int = 400) -> None:
        self.name, self.num_clips, self.real, self.fake = name, num_clips, real, fake
        self.load, self.num_features = network, num_features
        self._network: FeatureNetwork | None = None
        self._real_state: Tensor | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        if self._network is None:
            self._network = self.load(module.device)
        data: ClipDataModule = trainer.datamodule  # type: ignore[attr-defined]
        checkpoints: Any = trainer.checkpoint_callback
        metric: Any = FrechetDistance(self.num_features).to(module.device)
        real = self._real_state
        if real is not None:
            metric.real = real.clone()
        seed = trainer.global_rank * self.num_clips
        for batch in data.chosen_clips(self.num_clips):
            checkpoints.stop_if_asked(trainer, module)
            batch = float_video(module.transfer_batch_to_device(batch, module.device, 0))
            if real is None:
                metric.update(self._features(self._network, self.real(module, batch)), real=True)
            metric.update(self._features(self._network, self.fake(module, batch, seed)), real=False)
            seed += len(batch["label"])
        self._real_state = metric.real.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few clips bias it, at every validation
            module.log(self.name, metric.compute().float(), prog_bar=True, rank_zero_only=False)

    @staticmethod
    def _features(network: FeatureNetwork, frames: np.ndarray) -> Tensor:
        return network_features(network, torch.from_numpy(frames), PROTOCOL)  # (B, num_features)


def kinetics_network(config: TrainerConfig, num_clips: int,
                     num_frames: int) -> Callable[[torch.device], FeatureNetwork]:
    """Fetch the Kinetics-400 I3D now, before hours of training; returns the function that loads it on a device.
    ValueError: so few validation clips, for so many processes, or so short ones, that there will be no distance."""
    world = config.devices * config.num_nodes
    used = spread_count(config.val_fvd_clips, num_clips, world)
    if min(used, num_clips) < MIN_CLIPS or num_frames < MIN_FRAMES:
        among = f" ({world} processes take as many each, {used} of {num_clips})" if world > 1 else ""
        raise ValueError(f"trainer.val_fvd_clips needs a validation list of at least {MIN_CLIPS} clips, each of at "
                         f"least {MIN_FRAMES} frames, got {min(used, num_clips)}{among} and {num_frames}; "
                         "trainer.val_fvd_clips=0 does without")
    path = fetch_i3d()
    return lambda device: load_network("i3d-tf", path, device)
