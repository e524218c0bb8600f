"""Adversarial training of the tokenizer with one optimizer and one backward pass.

The autoencoder's loss goes through a critic whose parameters are detached, the critic's loss
sees a detached reconstruction, so the gradient of the sum is each side's own gradient. One
optimizer with two parameter groups runs unchanged on one device, under DDP and under DeepSpeed
ZeRO-1 and 2, and counts `global_step` once. Losses: NBP appendix; MAGVIT-v2 (arXiv 2310.05737).
Legend: B batch, T H W pixels.
"""

import math
from typing import Any, cast

import torch
from einops import rearrange
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.func import functional_call

from nbp.config import TokenizerRun
from nbp.data.dataset import VideoDataset
from nbp.data.images import ImageDataset
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.quality import usage_and_entropy
from nbp.hub.fetch import fetch_lpips
from nbp.hub.models import load_model
from nbp.tokenizer import losses
from nbp.tokenizer.discriminator import Discriminator
from nbp.tokenizer.inflation import inflate
from nbp.tokenizer.model import Tokenizer
from nbp.training.data import Batch, ClipDataModule
from nbp.training.module import TrainingModule, zero_loss
from nbp.training.muon import muon_groups
from nbp.training.optim import or_else
from nbp.training.validation import Samples, ValidationFVD, kinetics_network, to_frames

LECAM_DECAY = 0.99


class TokenizerModule(TrainingModule[Tokenizer]):
    """Trains a `Tokenizer`; `perceptual`, (B,3,H,W) x2 in [0,1] -> (B,), frozen, is for loss.perceptual > 0."""

    run: TokenizerRun
    lecam_real: Tensor
    lecam_fake: Tensor

    def __init__(self, run: TokenizerRun, perceptual: nn.Module | None = None, fresh: bool = True) -> None:
        model = Tokenizer(run.model)
        if fresh and run.inflate_from is not None:
            _, _, state = load_model(run.inflate_from, "tokenizer")
            model.load_state_dict(inflate(state, model, f"inflate_from={run.inflate_from}"))
        model.encoder.requires_grad_(not run.freeze_encoder)
        super().__init__(model, run, perceptual, fresh)
        if run.loss.perceptual and perceptual is None:
            raise ValueError("loss.perceptual > 0 needs a perceptual network")
        self.max_steps = sum(phase.steps for phase in run.curriculum)
        self.monitor = ("val/rfvd", "min") if run.trainer.val_fvd_clips else ("val/psnr", "max")
        self.discriminator = Discriminator(run.discriminator) if run.loss.adversarial else None
        self._logits: list[Tensor] = []     # mean logits (2,), real and fake, of each micro-batch of this step
        self.register_buffer("lecam_real", torch.zeros(()))
        self.register_buffer("lecam_fake", torch.zeros(()))
        if not run.trainer.strategy.startswith("deepspeed"):  # its parameter broadcast needs the default layout
            for module in self.modules():
                if isinstance(module, torch.nn.Conv3d):      # a frame critic's 2D kernels know no such layout
                    module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def parameter_groups(self) -> list[dict[str, Any]]:
        optim, model = self.run.optim, self.model
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.requires_grad], "lr": optim.lr}]
        if optim.optimizer == "muon":
            ends = [layer for side in (model.encoder, model.decoder) for part in (side.conv_in, side.head[-1])
                    for layer in part.modules()]
            groups = muon_groups(model, ends, optim.lr, or_else(optim.muon_lr, optim.lr), optim.weight_decay)
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()),
                           "lr": or_else(optim.discriminator_lr, optim.lr)})
        return groups

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """Clip each side by itself: the critics' gradients are tens of times larger and would silence the other's."""
        for side in (self.model, self.discriminator):
            if side is not None:
                torch.nn.utils.clip_grad_norm_(side.parameters(), gradient_clip_val or float("inf"))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.lower_frozen(self.trainer.precision == "bf16-mixed")

    def lower_frozen(self, low_precision: bool = True) -> None:
        """Bring the perceptual network to the layout and dtype of its convolutions; autocast would cast its weights
        anew at every call: 4 frames took 314 ms, so they take 160 (AMX)."""
        if self.frozen is None:
            return
        self.frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if low_precision:
            for layer in self.frozen.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.bfloat16()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        video = self.input(batch)  # (B, 3, T, H, W)
        latents = self.model.encoder(video)  # (B, d, t, h, w)
        codes, indices = self.model.fsq(latents)
        reconstruction = self.model.decoder(codes.to(video.dtype))
        terms = self.autoencoder_terms(reconstruction, video)
        if self.run.loss.even_use:
            terms["even_use"] = self.run.loss.even_use * losses.even_use_loss(latents)
        terms |= self.adversarial_terms(reconstruction, video)
        loss = total_loss(terms)
        # Latents that are not finite may give ids out of range; the loss says so, and the step is skipped.
        usage, entropy = usage_and_entropy(self._histogram(indices.clamp(0, self.model.num_codes - 1)))
        perplexity = entropy.exp()
        terms = {name: value.detach() for name, value in terms.items()}
        self.log_dict({f"train/{name}": value for name, value in terms.items()}
                      | {"train/code_usage": usage, "train/code_perplexity": perplexity})
        self.log("train/loss", loss.detach(), prog_bar=True)
        self._watch(terms | {"code_perplexity": perplexity}, video)
        return self.skip_if_not_finite(loss)

    def input(self, batch: Batch) -> Tensor:
        """Video of a batch as the autoencoder takes it: in the precision of its weights."""
        return batch["video"].to(self.model.encoder.conv_in.conv.weight.dtype, memory_format=torch.channels_last_3d)

    def tokens_per_clip(self, batch: Batch) -> int:
        return math.prod(self.model.config.latent_grid(*batch["video"].shape[2:]))

    def _watch(self, terms: dict[str, Tensor], video: Tensor) -> None:
        self.watched = {name: terms[name] for name in ("reconstruction", "code_perplexity")}
        self.watched_shape = tuple(video.shape)
        if "logit_real" in terms:
            real, fake = terms["logit_real"], terms["logit_fake"]
            self.watched |= {"discriminator": terms["discriminator"], "logit": torch.maximum(real.abs(), fake.abs()),
                             "logit_gap": (real - fake).abs()}
            self.log("train/discriminator_balance", (real - fake) / (real.abs() + fake.abs() + 1e-6))

    def autoencoder_terms(self, reconstruction: Tensor, video: Tensor) -> dict[str, Tensor]:
        """Weighted reconstruction and perceptual losses."""
        weights = self.run.loss
        terms = {"reconstruction": losses.reconstruction_loss(reconstruction, video, weights.l1, weights.l2)}
        if self.frozen is not None and weights.perceptual and self.global_step >= weights.perceptual_start_step:
            fake, real = self._random_frames(reconstruction, video)
            terms["perceptual"] = weights.perceptual * self.frozen(fake, real).mean()
        return terms

    def adversarial_terms(self, reconstruction: Tensor, video: Tensor) -> dict[str, Tensor]:
        """Weighted losses of both sides of the game, and the critics' mean logits on real and fake."""
        weights = self.run.loss
        if self.discriminator is None:
            return {}
        ramp = losses.adversarial_ramp(self.global_step, weights.adversarial_start_step,
                                       weights.adversarial_warmup_steps)
        if ramp == 0:
            return {"discriminator": zero_loss(self.discriminator)}
        real, real_features = self.discriminator(video)
        fake, _ = self.discriminator(reconstruction.detach())
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged, judged_features = functional_call(self.discriminator, frozen, (reconstruction,))
        kind = weights.adversarial_kind
        terms = {"adversarial": ramp * weights.adversarial * losses.adversarial_loss(judged, kind),
                 "discriminator": losses.discriminator_loss(real, fake, kind)}
        if weights.feature_matching:
            terms["feature_matching"] = ramp * weights.feature_matching * losses.feature_matching_loss(
                real_features, judged_features)
        if weights.lecam:
            terms["lecam"] = weights.lecam * self._lecam(real, fake)
        if weights.gradient_penalty:
            terms["gradient_penalty"] = weights.gradient_penalty * losses.gradient_penalty(self.discriminator, video)
        return terms | {"logit_real": losses.mean_logit(real), "logit_fake": losses.mean_logit(fake)}

    def _lecam(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        means = torch.stack([losses.mean_logit(logits).detach().float() for logits in (real, fake)])     # (2,)
        self._logits.append(means)
        averages = torch.stack([self.lecam_real, self.lecam_fake]).float()
        averages = torch.where(averages == 0, means, averages)      # none yet
        return losses.lecam_loss(real, fake, averages[0], averages[1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As of any module; LeCAM's averages follow the step's logits, and critics that wait count no step."""
        super().on_before_optimizer_step(optimizer)
        if self._logits and self.ends_step:        # once a step, however many micro-batches it has
            means = self.mean_over_ranks(torch.stack(self._logits).mean(0))
            for average, mean in zip((self.lecam_real, self.lecam_fake), means.to(self.lecam_real)):
                # One step that is not finite, and is skipped, must not stay in the average.
                kept = torch.where(average == 0, mean, average.lerp(mean, 1 - LECAM_DECAY))
                average.copy_(torch.where(mean.isfinite(), kept, average))
            self._logits = []
        if self.discriminator is not None and self.global_step <= self.run.loss.adversarial_start_step:
            # Zeros have counted as steps, which would leave critics without Adam's bias correction when they begin.
            for p in optimizer.param_groups[-1]["params"]:
                if "step" in (state := optimizer.state.get(p, {})):
                    state["step"].zero_()

    def _random_frames(self, *videos: Tensor) -> list[Tensor]:
        """The same `perceptual_frames` random frames of each video, as images (n, 3, H, W)."""
        frames = [rearrange(video, "b c t h w -> (b t) c h w") for video in videos]  # (B*T, 3, H, W) each
        pick = torch.randperm(len(frames[0]), device=self.device)[:self.run.loss.perceptual_frames]
        return [images[pick] for images in frames]

    def on_validation_epoch_start(self) -> None:
        self._code_counts = torch.zeros(self.model.num_codes, device=self.device)  # (V,)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        video = self.input(batch)
        reconstruction, indices = self.averaged(video)
        error = (reconstruction.float().clamp(0, 1) - batch["video"]).square().mean((1, 2, 3, 4))  # (B,)
        self._code_counts += self._histogram(indices)
        self.log("val/psnr", (-10 * error.log10()).mean(), sync_dist=True, prog_bar=True, batch_size=len(video))
        return reconstruction.clamp(0, 1)

    def on_validation_epoch_end(self) -> None:
        usage, entropy = usage_and_entropy(self.trainer.strategy.reduce(self._code_counts, reduce_op="sum"))
        self.log_dict({"val/code_usage": usage, "val/code_perplexity": entropy.exp()})

    def _histogram(self, indices: Tensor) -> Tensor:
        """How often each code occurs, float32 (V,); `torch.bincount` would wait for a GPU."""
        places = indices.flatten().long()
        return torch.zeros(self.model.num_codes, device=places.device).scatter_add_(0, places, torch.ones_like(
            places, dtype=torch.float32))


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms that are losses; the critics' mean logits are not."""
    return cast(Tensor, sum(value for name, value in terms.items() if not name.startswith("logit_")))


def check_effects(run: TokenizerRun) -> None:
    """ValueError: a setting that would do nothing."""
    if run.optim.weight_decay and run.optim.optimizer == "adamw":
        raise ValueError(f"optim.weight_decay={run.optim.weight_decay}: under AdamW a tokenizer has none; use 0")
    if run.loss.feature_matching and not run.loss.adversarial:
        raise ValueError(f"loss.feature_matching={run.loss.feature_matching} needs critics; with loss.adversarial=0 "
                         "there are none, so set it to 0 as well")


def build(run: TokenizerRun, fresh: bool = True) -> tuple[TokenizerModule, ClipDataModule, list[Callback]]:
    """All that a tokenizer run needs; not `fresh`: without the weights it began with. ValueError: ZeRO-3, which
    partitions the parameters that the adversarial step needs whole; or gradient clipping under DeepSpeed, which cannot
    clip the two sides apart."""
    if run.trainer.strategy.startswith("deepspeed_3"):
        raise ValueError(f"trainer.strategy={run.trainer.strategy} cannot train a tokenizer: the autoencoder's loss "
                         "needs the whole critic, ZeRO-3 splits it; use deepspeed_1, deepspeed_2 or ddp")
    if run.trainer.strategy.startswith("deepspeed") and run.optim.gradient_clip:
        raise ValueError(f"optim.gradient_clip={run.optim.gradient_clip} with trainer.strategy={run.trainer.strategy}: "
                         "DeepSpeed clips autoencoder and critics by their common norm, and the critics' is tens of "
                         "times larger; set optim.gradient_clip=0, or use ddp")
    if fresh:
        check_effects(run)
    perceptual = LPIPS.from_file(fetch_lpips("vgg"), "vgg") if run.loss.perceptual else None
    images, stills = run.images if run.images.share else None, None
    if images is not None and images.root is not None:
        stills = ImageDataset(run.data, images.root, images.train_list)
    train, val = VideoDataset(run.data, "train", train=True, as_bytes=True), VideoDataset(run.data, "val", train=False)
    data = ClipDataModule(train, val, run.curriculum, run.curriculum[-1].batch_size, run.trainer, run.accumulate, None,
                          images, stills)
    callbacks: list[Callback] = [Samples(run.trainer, "reconstructions", lambda _, batch, outputs: [
        to_frames(batch["video"]), to_frames(outputs)], run.data.fps)]
    if run.trainer.val_fvd_clips:
        callbacks.append(ValidationFVD(
            "val/rfvd", run.trainer.val_fvd_clips, lambda _, batch: to_frames(batch["video"]),
            lambda module, batch, _: to_frames(module.averaged(module.input(batch))[0]),
            kinetics_network(run.trainer, len(val), run.data.num_frames)))
    return TokenizerModule(run, perceptual, fresh), data, callbacks
