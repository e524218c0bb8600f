"""Everything a tokenizer run needs, built from its config."""

from pathlib import Path

from nbp.data.dataset import VideoDataset
from nbp.data.images import ImageDataset
from nbp.evaluation.lpips import LPIPS
from nbp.hub.fetch import fetch_lpips
from nbp.training.datamodule import ClipDataModule
from nbp.training.pictures import Reconstructions, to_frames
from nbp.training.sampler import Phase
from nbp.training.tokenizer_module import TokenizerModule
from nbp.training.validation_fvd import ValidationFVD, kinetics_network


def build(run):
    """Module, data and callbacks of a `TokenizerRun`.

    Raises:
        ValueError: ZeRO-3, which partitions the parameters that the adversarial step needs whole; or gradient
            clipping under DeepSpeed, which cannot clip the two sides apart.
    """
    if run.trainer.strategy.startswith("deepspeed_3"):
        raise ValueError(f"trainer.strategy={run.trainer.strategy} cannot train a tokenizer: the autoencoder's loss "
                         "needs the whole critic, ZeRO-3 splits it; use deepspeed_1, deepspeed_2 or ddp")
    if run.trainer.strategy.startswith("deepspeed") and run.optim.gradient_clip:
        raise ValueError(f"optim.gradient_clip={run.optim.gradient_clip} with trainer.strategy={run.trainer.strategy}: "
                         "DeepSpeed clips autoencoder and critics by their common norm, and the critics' is tens of "
                         "times larger; set optim.gradient_clip=0, or use ddp")
    perceptual = LPIPS.from_file(fetch_lpips("vgg"), "vgg") if run.loss.perceptual else None
    phases = [Phase(p.steps, p.batch_size, p.num_frames) for p in run.curriculum]
    images, stills = run.images if run.images.share else None, None
    if images is not None and images.root is not None:
        stills = ImageDataset(run.data, images.root, images.train_list)
    data = ClipDataModule(VideoDataset(run.data, "train", train=True), VideoDataset(run.data, "val", train=False),
                          phases, phases[-1].batch_size, run.trainer, images, stills)
    callbacks = [Reconstructions(Path(run.trainer.out) / "samples", run.trainer.val_samples, run.data.fps)]
    if run.trainer.val_fvd_clips:
        callbacks.append(ValidationFVD("val/rfvd", run.trainer.val_fvd_clips, _real, _reconstructed, kinetics_network()))
    return TokenizerModule(run, perceptual), data, callbacks


def _real(module, batch):
    return to_frames(batch["video"])


def _reconstructed(module, batch, seed):
    return to_frames(module.averaged(module.input(batch))[0])
