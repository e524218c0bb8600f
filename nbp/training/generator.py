"""Training of the generator by next-block prediction (arXiv 2502.07737, section 3.2).

Batches hold cached token indices, or video that a frozen tokenizer turns into indices here.
Legend: B batch, C condition tokens, t h w latent grid, T H W pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from nbp.config import GeneratorConfig, GeneratorRun
from nbp.config.runs import CurriculumPhase
from nbp.data.classes import class_text
from nbp.data.dataset import VideoDataset
from nbp.data.tokens import TokenDataset
from nbp.generator.conditions import condition_encoder, text_ids_sha256
from nbp.generator.model import Generator
from nbp.generator.sequence import raster_order
from nbp.hub.models import model_hash
from nbp.tokenizer.model import Tokenizer
from nbp.training.data import Batch, ClipDataModule
from nbp.training.module import TrainingModule
from nbp.training.muon import muon_groups
from nbp.training.optim import or_else, weight_decay_groups
from nbp.training.validation import Samples, ValidationFVD, kinetics_network, to_frames


class GeneratorModule(TrainingModule[Generator]):
    """Trains a `Generator` on tokens, or with a frozen `tokenizer` on video; `encode_condition` gives a batch's
    condition ids (B, C) int64, None for unconditional models."""

    run: GeneratorRun

    def __init__(self, run: GeneratorRun, tokenizer: Tokenizer | None = None,
                 encode_condition: Callable[[Any], Tensor] | None = None, fresh: bool = True) -> None:
        super().__init__(Generator(run.model), run, tokenizer, fresh)
        self.max_steps = run.max_steps
        if run.trainer.val_fvd_clips:
            self.monitor = ("val/gfvd", "min")
        self.encode_condition = encode_condition

    def parameter_groups(self) -> list[dict[str, Any]]:
        optim = self.run.optim
        if optim.optimizer == "muon":
            return muon_groups(self.model, [self.model.head], optim.lr, or_else(optim.muon_lr, optim.lr),
                               optim.weight_decay)
        return weight_decay_groups(self.model, optim.lr, optim.weight_decay)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        indices = self.indices(batch)
        loss = self.model.loss(indices, self.condition(batch))
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.watched, self.watched_shape = {"loss": loss.detach()}, tuple(indices.shape)
        return self.skip_if_not_finite(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        indices = self.indices(batch)
        nll, rank = self.averaged.score(indices, self.condition(batch))  # (B, P) each
        ranks = rank.masked_fill(~nll.isfinite(), self.run.model.num_codes)    # no number is larger than NaN
        top = {f"val/top{count}": (ranks < count).float().mean() for count in (1, 5)}
        self.log_dict({"val/loss": nll.mean()} | top, sync_dist=True, batch_size=len(indices))

    def tokens_per_clip(self, batch: Batch) -> int:
        return math.prod(self.run.model.grid)

    @torch.no_grad()
    def indices(self, batch: Batch) -> Tensor:
        """Codes (B, t, h, w) int64 of a batch of tokens or of video."""
        if "indices" in batch:
            return batch["indices"]
        tokenizer = self.frozen
        assert isinstance(tokenizer, Tokenizer)
        return tokenizer.encode(batch["video"].contiguous())[1].long()  # (B, t, h, w)

    def condition(self, batch: Batch) -> Tensor | None:
        """Condition ids (B, C), or None."""
        return None if self.encode_condition is None else self.encode_condition(batch).to(self.device)


def given_tokens(model: GeneratorConfig) -> int:
    """How many tokens of a clip are given to a model that cannot begin by itself: 5 frames in whole blocks, and where
    that would be the whole clip, a block."""
    frame = model.grid[1] * model.grid[2]
    size = model.block_size if raster_order(model.block_shape) else model.block_shape[0] * frame
    count = math.ceil(2 * frame / size) * size
    return count if count < model.grid[0] * frame else size


class SampleClips:
    """Generates clips with a generator in training; the first `prefix` tokens are given to models that cannot begin."""

    def __init__(self, tokenizer: Tokenizer, prefix: int = 0) -> None:
        self.tokenizer, self.prefix = tokenizer, prefix

    @torch.no_grad()
    def __call__(self, module: GeneratorModule, batch: Batch, seed: int) -> np.ndarray:
        """Clips for the conditions (and first tokens, with `prefix`) of a batch: uint8 (B, T, H, W, 3)."""
        indices = module.indices(batch).to(module.device)
        streams = [torch.Generator(module.device).manual_seed(seed + number) for number in range(len(indices))]
        given = indices.flatten(1)[:, :self.prefix] if self.prefix else None  # (B, prefix)
        with module.whole_weights(), torch.autocast(module.device.type, enabled=False):
            draft = module.averaged.begin(module.condition(batch), given, generator=streams)
            while draft.step():     # and no check: pictures of a model that has gone wrong are wanted as well
                pass
        return self._decode(module, draft.codes())

    def real(self, module: GeneratorModule, batch: Batch) -> np.ndarray:
        """The clips of a batch, uint8 (B, T, H, W, 3); of tokens what the tokenizer makes of them."""
        return to_frames(batch["video"]) if "video" in batch else self._decode(module, batch["indices"])

    @torch.no_grad()
    def _decode(self, module: GeneratorModule, indices: Tensor) -> np.ndarray:
        tokenizer = self.tokenizer.to(module.device)
        with torch.autocast(module.device.type, enabled=False):
            video = tokenizer.decode_from_code_indices(indices)  # (B, 3, T, H, W)
        return to_frames(video)


def build(run: GeneratorRun, fresh: bool = True) -> tuple[GeneratorModule, ClipDataModule, list[Callback]]:
    """All that a generator run needs; not `fresh`: without the weights it began with. ValueError: another tokenizer's
    tokens, or another grid, codebook, levels or classes."""
    tokenizer = Tokenizer.from_pretrained(run.tokenizer)
    digest = model_hash(tokenizer)
    train: TokenDataset | VideoDataset
    val: TokenDataset | VideoDataset
    if run.data is None:
        train, val = (TokenDataset(f"{run.tokens}/{split}", digest) for split in ("train", "val"))
        grid, num_codes = train.grid, train.num_codes
        _check_splits(train, val, run.tokens)
    else:
        train = VideoDataset(run.data, "train", train=True, as_bytes=True)
        val = VideoDataset(run.data, "val", train=False)
        grid = tokenizer.config.latent_grid(run.data.num_frames, *run.data.size)
        num_codes = tokenizer.num_codes
    _check_model(run.model, grid, num_codes, train.classes, tokenizer.config.fsq_levels)
    num_frames = run.data.num_frames if run.data is not None else 0
    phases = [CurriculumPhase(run.max_steps, num_frames, run.batch_size)]
    encode, texts = condition_encoder(run.model, run.text_tokenizer), None
    if encode is not None and run.model.condition == "text":
        texts = text_ids_sha256(encode, map(class_text, train.classes))
    data = ClipDataModule(train, val, phases, run.batch_size, run.trainer, run.accumulate, digest,
                          text_ids_sha256=texts)
    module = GeneratorModule(run, None if run.data is None else tokenizer, encode, fresh)
    clips = SampleClips(tokenizer, 0 if run.model.begin_token else given_tokens(run.model))
    fps = run.data.fps if run.data is not None else None
    callbacks: list[Callback] = [
        Samples(run.trainer, "samples", lambda module, batch, _: [clips(module, batch, seed=0)], fps)]
    if run.trainer.val_fvd_clips:
        num_frames = 1 + tokenizer.config.downsample[0] * (run.model.grid[0] - 1)
        callbacks.append(ValidationFVD("val/gfvd", run.trainer.val_fvd_clips, clips.real, clips,
                                       kinetics_network(run.trainer, len(val), num_frames)))
    return module, data, callbacks


def _check_splits(train: TokenDataset, val: TokenDataset, tokens: str | None) -> None:
    def facts(data: TokenDataset) -> dict[str, Any]:
        return {"classes": data.classes, "grid": data.grid,
                **{name: data.meta["data"].get(name) for name in ("resolution", "num_frames", "fps", "resize")}}

    for (name, value), other in zip(facts(train).items(), facts(val).values()):
        if value != other:
            raise ValueError(f"{tokens}: {name} is {value} in train and {other} in val, so that validation would mean "
                             "something else; tokenize both again with one data config")


def _check_model(model: GeneratorConfig, grid: Sequence[int], num_codes: int, classes: Sequence[str],
                 levels: Sequence[int]) -> None:
    found: dict[str, Any] = {"grid": list(grid), "num_codes": num_codes}
    if model.code_levels is not None:
        found["code_levels"] = list(levels)
    if model.condition == "label":
        found["num_condition_ids"] = len(classes)
    for name, value in found.items():
        configured = getattr(model, name)
        configured = list(configured) if isinstance(value, list) else configured
        if configured != value:
            raise ValueError(f"model.{name} is {configured}, but the training data has {value}")
