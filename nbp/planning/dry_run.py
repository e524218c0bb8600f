"""The training step of a run without weights, data or arithmetic: the real modules on the meta device.

What is counted on it (`flops.py`, `memory.py`) is what the modules do, not a second description of them.
Legend: B clips of a micro-batch, T H W pixels, t h w latent grid.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from nbp.config import TokenizerConfig
from nbp.evaluation.lpips import LPIPS
from nbp.hub.models import load_model
from nbp.hub import official
from nbp.tokenizer.model import Tokenizer
from nbp.training.generator_module import GeneratorModule
from nbp.training.tokenizer_module import TokenizerModule

META = torch.device("meta")


@dataclass(frozen=True)
class MicroBatch:
    """Shape of what one device processes at once."""

    batch_size: int
    num_frames: int


def build_module(run, step=None):
    """The training module of a run on the meta device.

    Args:
        run: `TokenizerRun` or `GeneratorRun`.
        step: optimizer step whose loss terms are switched on; None: all that the run ever has.

    Returns:
        `TokenizerModule` or `GeneratorModule` in training mode.
    """
    run = dataclasses.replace(run, init_from=None)
    with META:
        if run.kind == "tokenizer":
            run = dataclasses.replace(_terms_at(run, step), pooling_start=False, inflate_from=None)
            module = TokenizerModule(run, LPIPS("vgg") if run.loss.perceptual else None)
        else:
            module = GeneratorModule(run, None if run.data is None else Tokenizer(tokenizer_config(run.tokenizer)))
            for network in filter(None, module._frozen):
                network.requires_grad_(False)
    return module.to(META).train()


def tokenizer_config(path):
    """Config of the tokenizer that a generator run names, without its weights.

    Args:
        path: native folder, or an official file, which need not be here: all have the released architecture.

    Raises:
        ValueError: not a native folder.
    """
    if Path(path).suffix in (".pt", ".ckpt"):
        return official.tokenizer_config()
    if not Path(path).exists():
        raise ValueError(f"tokenizer={path} does not exist yet, and its architecture counts; tokenizer=released.pt, or "
                         "any other name of an official file, stands for the released one")
    return load_model(path, "tokenizer")[1]


def _terms_at(run, step):
    """The run with every loss term either on from step 0 or off, as it is at `step`."""
    loss = run.loss
    reached = {name: step is None or step >= start for name, start in (
        ("perceptual", loss.perceptual_start_step), ("adversarial", loss.adversarial_start_step))}
    # The critics stay in the model before their turn; only their terms wait.
    loss = dataclasses.replace(loss, perceptual=loss.perceptual if reached["perceptual"] else 0.0,
                               perceptual_start_step=0, adversarial_warmup_steps=0,
                               adversarial_start_step=0 if reached["adversarial"] else 1)
    return dataclasses.replace(run, loss=loss)


def num_steps(run):
    """Optimizer steps of a run."""
    return run.max_steps if run.kind == "generator" else sum(phase.steps for phase in run.curriculum)


def micro_batches(run, step=None):
    """What the micro-batches of an optimizer step hold.

    Args:
        run: `TokenizerRun` or `GeneratorRun`.
        step: optimizer step; None: the last one.

    Returns:
        list of (share of the micro-batches, `MicroBatch`); the shares add up to 1.
    """
    if run.kind == "generator":
        return [(1.0, MicroBatch(run.batch_size, run.data.num_frames if run.data is not None else 0))]
    step = num_steps(run) - 1 if step is None else step
    for phase in run.curriculum:
        if step < phase.steps:
            break
        step -= phase.steps
    clips, images = MicroBatch(phase.batch_size, phase.num_frames), run.images
    return [(1 - images.share, clips)] + ([(images.share, MicroBatch(images.batch_size, 1))] if images.share else [])


def loss_of(module, micro_batch):
    """Loss of one micro-batch on the meta device, as the module's `training_step` sums it."""
    run = module.run
    if run.kind == "generator":
        indices = torch.empty(micro_batch.batch_size, *run.model.grid, dtype=torch.long, device=META)
        if run.data is not None:
            with torch.no_grad():
                tokenizer = module._frozen[0]
                indices = tokenizer.fsq(tokenizer.encoder(_video(run.data, micro_batch)))[1].long()
        condition = None
        if run.model.condition != "none":
            condition = torch.empty(micro_batch.batch_size, run.model.condition_len, dtype=torch.long, device=META)
        return module.model.loss(indices, condition)
    video = module.input({"video": _video(run.data, micro_batch)})
    reconstruction, _ = module.model(video)
    terms = module.autoencoder_terms(reconstruction, video) | module.adversarial_terms(reconstruction, video)
    return sum(value for name, value in terms.items() if not name.startswith("logit_"))


def _video(data, micro_batch):
    size = data.resolution
    video = torch.empty(micro_batch.batch_size, 3, micro_batch.num_frames, size, size, device=META)
    return video.to(memory_format=torch.channels_last_3d)
