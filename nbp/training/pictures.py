"""What the eye sees of a run, at each validation: `samples/stepNNN.png` and `.mp4`, and wandb where it is on.

Legend: frames uint8 (T, H, W, 3).
"""

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

from nbp.data.clips import video_to_frames
from nbp.data.sheet import contact_sheet, write_picture
from nbp.data.video_io import write_video
from nbp.training.loggers import log_media

NUM_FRAMES = 5   # of each clip in a picture
FPS = 8.0


def write_clips(trainer, folder, name, rows, fps):
    """Write clips as a picture (each clip a row of frames) and a video (each entry of `rows` a row of clips).

    Args:
        trainer: for its step and loggers.
        folder: where to.
        name: in wandb.
        rows: list of lists of clips, frames of one size.
        fps: of the video; None: 8.
    """
    path = Path(folder) / f"step{trainer.global_step:07d}"
    length = min(len(clip) for row in rows for clip in row)
    picture = contact_sheet([clip[:length] for clips in zip(*rows) for clip in clips], NUM_FRAMES)
    write_picture(path.with_suffix(".png"), picture)
    video = np.concatenate([np.concatenate([clip[:length] for clip in row], 2) for row in rows], 1)
    write_video(path.with_suffix(".mp4"), video, fps or FPS)
    log_media(trainer, name, path.with_suffix(".png"), path.with_suffix(".mp4"))


def to_frames(video):
    """Float video (B, 3, T, H, W), also of a model that has gone wrong -> uint8 (B, T, H, W, 3)."""
    return video_to_frames(torch.nan_to_num(video.float()).cpu())


class Reconstructions(Callback):
    """The first validation clips above their reconstructions.

    Args:
        folder: of the pictures.
        num_clips: at most.
        fps: of the video.
    """

    def __init__(self, folder, num_clips=4, fps=None):
        self.folder, self.num_clips, self.fps = folder, num_clips, fps

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx or not self.num_clips or not trainer.is_global_zero:
            return
        rows = [list(to_frames(video[:self.num_clips])) for video in (batch["video"], outputs)]
        write_clips(trainer, self.folder, "reconstructions", rows, self.fps)


class GeneratedSamples(Callback):
    """Clips generated for the conditions of the first validation clips.

    Args:
        folder: of the pictures.
        make_clips: function(module, batch, seed) -> frames (B, T, H, W, 3), as `SampleClips`.
        num_clips: how many; 0: none.
        fps: of the video.
    """

    def __init__(self, folder, make_clips, num_clips=4, fps=None):
        self.folder, self.make_clips, self.num_clips, self.fps = folder, make_clips, num_clips, fps

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx or not self.num_clips:
            return
        # Every rank generates: under ZeRO-3 none can do so by itself.
        clips = self.make_clips(module, {name: value[:self.num_clips] for name, value in batch.items()}, seed=0)
        if trainer.is_global_zero:
            write_clips(trainer, self.folder, "samples", [list(clips)], self.fps)


class SampleClips:
    """Generates clips with a generator module in training.

    Args:
        tokenizer: frozen `Tokenizer`.
        prefix: latent frames that are given, for models that cannot begin by themselves.
    """

    def __init__(self, tokenizer, prefix=0):
        self.tokenizer, self.prefix = tokenizer, prefix

    @torch.no_grad()
    def __call__(self, module, batch, seed):
        """Clips for the conditions (and first latent frames, with `prefix`) of a batch: uint8 (B, T, H, W, 3)."""
        indices, condition = module.indices_and_condition(batch)
        streams = [torch.Generator(module.device).manual_seed(seed + number) for number in range(len(indices))]
        given = indices[:, :self.prefix] if self.prefix else None
        with module.whole_weights(), torch.autocast(module.device.type, enabled=False):
            sampled = module.averaged.generate(condition, given, generator=streams)
        return self._decode(module, sampled)

    def real(self, module, batch):
        """The clips of a batch, uint8 (B, T, H, W, 3); of tokens what the tokenizer makes of them."""
        return to_frames(batch["video"]) if "video" in batch else self._decode(module, batch["indices"])

    @torch.no_grad()
    def _decode(self, module, indices):
        tokenizer = self.tokenizer.to(module.device)
        with torch.autocast(module.device.type, enabled=False):
            video = tokenizer.decode_from_code_indices(indices)
        return to_frames(video)
