"""A run's training step without weights, data or arithmetic, the real modules on the meta device, and its FLOPs.

What is counted is what the modules do, not a second description of them. A multiplication and an addition are two
operations; convolutions and matrix products count, as in torch.utils.flop_counter, elementwise work does not. Model
FLOPs leave out what activation checkpointing computes again (Chowdhery et al., arXiv 2204.02311, appendix B), executed
FLOPs include it.
Legend: B clips of a micro-batch, T H W pixels, t h w latent grid.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nbp.config import DataConfig, TokenizerConfig, TokenizerRun
from nbp.config.runs import Run
from nbp.evaluation.lpips import LPIPS
from nbp.hub import official
from nbp.hub.locating import FILE_SUFFIXES
from nbp.hub.models import open_model
from nbp.tokenizer.model import Tokenizer
from nbp.training.generator import GeneratorModule
from nbp.training.tokenizer import TokenizerModule, total_loss

META = torch.device("meta")
_FLOPS: dict[str, float] = {}       # of micro-batches that were counted


@dataclass(frozen=True)
class Gpu:
    """An accelerator by its maker's data sheet."""

    device: str             # whole words of the name that CUDA gives it
    memory_gb: int
    bf16_tflops: float      # dense; 0: bfloat16 is not multiplied in hardware
    fp32_tflops: float


# nvidia.com data sheets; H100 and H200 are SXM unless PCIe is named, GeForce with float32 accumulation. The first whose
# device is part of a name counts.
GPUS = {
    "v100-32g": Gpu("V100", 32, 0, 15.7),
    "a100-40g": Gpu("A100", 40, 312, 19.5),
    "a100-80g": Gpu("A100", 80, 312, 19.5),
    "h100-pcie-80g": Gpu("H100 PCIe", 80, 756, 51.2),
    "h100-80g": Gpu("H100", 80, 989, 67),
    "h200-141g": Gpu("H200", 141, 989, 67),
    "l40s-48g": Gpu("L40S", 48, 362, 91.6),
    "l40-48g": Gpu("L40", 48, 181, 90.5),
    "a40-48g": Gpu("A40", 48, 150, 37.4),
    "l4-24g": Gpu("L4", 24, 121, 30.3),
    "rtx4090-24g": Gpu("RTX 4090", 24, 165, 82.6),
    "rtx3090-24g": Gpu("RTX 3090", 24, 71, 35.6),
}


def known_gpu(name: str) -> Gpu | None:
    """The GPU that CUDA calls `name`; None where it is not known."""
    return next((gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.device}\b", name)), None)


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 operations per second of a device by CUDA's name for it; None where it is not known."""
    gpu = known_gpu(name)
    return gpu.bf16_tflops * 1e12 if gpu is not None and gpu.bf16_tflops else None


@dataclass(frozen=True)
class MicroBatch:
    """Shape of what one device processes at once."""

    batch_size: int
    num_frames: int


def build_module(run: Run, step: int | None = None, tokenizer: TokenizerConfig | None = None,
                 device: torch.device = META) -> TokenizerModule | GeneratorModule:
    """The training module of a run, untrained, in training mode; on the meta device nothing is stored or computed.
    `step` is the optimizer step whose loss terms are on (None: all that the run ever has), `tokenizer` the config of
    the one that tokenizes a generator's videos (None: that of `run.tokenizer`)."""
    run = dataclasses.replace(run, init_from=None)
    module: TokenizerModule | GeneratorModule
    with device:
        if isinstance(run, TokenizerRun):
            run = dataclasses.replace(_terms_at(run, step), inflate_from=None)
            module = TokenizerModule(run, LPIPS("vgg") if run.loss.perceptual else None)
        elif run.data is None:
            module = GeneratorModule(run)
        else:
            module = GeneratorModule(run, Tokenizer(tokenizer or tokenizer_config(run.tokenizer)).requires_grad_(False))
    return module.to(device).train()


def tokenizer_config(path: str) -> TokenizerConfig:
    """Config of the tokenizer of a native folder, hub id or file, without its weights; a file that is not here yet
    stands for the released architecture. ValueError: no tokenizer there."""
    if Path(path).suffix in FILE_SUFFIXES and not Path(path).exists():
        return official.tokenizer_config()
    try:
        return cast(TokenizerConfig, open_model(path, "tokenizer").config)
    except ValueError as error:
        if Path(path).exists():
            raise
        raise ValueError(f"tokenizer={path} does not exist yet, and its architecture counts; tokenizer=released.pt, or "
                         "any other name of an official file, stands for the released one") from error


def _terms_at(run: TokenizerRun, step: int | None) -> TokenizerRun:
    """The run with every loss term either on from step 0 or off, as it is at `step`."""
    loss = run.loss
    reached = {name: step is None or step >= start for name, start in (
        ("perceptual", loss.perceptual_start_step), ("adversarial", loss.adversarial_start_step))}
    # The critics stay in the model before their turn; only their terms wait.
    loss = dataclasses.replace(loss, perceptual=loss.perceptual if reached["perceptual"] else 0.0,
                               perceptual_start_step=0, adversarial_warmup_steps=0,
                               adversarial_start_step=0 if reached["adversarial"] else 1)
    return dataclasses.replace(run, loss=loss)


def num_steps(run: Run) -> int:
    return sum(phase.steps for phase in run.curriculum) if isinstance(run, TokenizerRun) else run.max_steps


def micro_batches(run: Run, step: int | None = None) -> list[tuple[float, MicroBatch]]:
    """Micro-batches of optimizer step `step` (None: the last): (share, shape); the shares add up to 1."""
    if not isinstance(run, TokenizerRun):
        return [(1.0, MicroBatch(run.batch_size, run.data.num_frames if run.data is not None else 0))]
    step = num_steps(run) - 1 if step is None else step
    for phase in run.curriculum:
        if step < phase.steps:
            break
        step -= phase.steps
    clips, images = MicroBatch(phase.batch_size, phase.num_frames), run.images
    return [(1 - images.share, clips)] + ([(images.share, MicroBatch(images.batch_size, 1))] if images.share else [])


def loss_of(module: TokenizerModule | GeneratorModule, micro_batch: MicroBatch) -> Tensor:
    """Loss of one micro-batch of noise on the module's device, as its `training_step` sums it."""
    if isinstance(module, TokenizerModule):
        video = module.input({"video": _video(module.run.data, micro_batch, module.device)})
        reconstruction, _ = module.model(video)
        return total_loss(module.autoencoder_terms(reconstruction, video)
                          | module.adversarial_terms(reconstruction, video))
    run = module.run
    indices = torch.zeros(micro_batch.batch_size, *run.model.grid, dtype=torch.long,
                          device=module.device)  # (B, t, h, w)
    if run.data is not None:
        with torch.no_grad():
            tokenizer = cast(Tokenizer, module.frozen)
            indices = tokenizer.fsq(tokenizer.encoder(_video(run.data, micro_batch, module.device)))[1].long()
    condition = None
    if run.model.condition != "none":
        condition = torch.zeros(micro_batch.batch_size, run.model.condition_len, dtype=torch.long, device=module.device)
    return module.model.loss(indices, condition)


def _video(data: DataConfig, micro_batch: MicroBatch, device: torch.device) -> Tensor:
    video = torch.rand(micro_batch.batch_size, 3, micro_batch.num_frames, *data.size, device=device)  # (B, 3, T, H, W)
    return video.to(memory_format=torch.channels_last_3d)


def flops_per_step(run: Run, step: int | None = None, tokenizer: TokenizerConfig | None = None) -> float:
    """Model FLOPs of optimizer step `step` (None: the last), forward and backward: all devices, all micro-batches.
    Costs seconds where it was not counted before, one pass on the meta device per kind of micro-batch."""
    world = run.trainer.devices * run.trainer.num_nodes
    return world * run.accumulate * micro_batch_flops(run, step, tokenizer=tokenizer)


def micro_batch_flops(run: Run, step: int | None = None, executed: bool = False,
                      tokenizer: TokenizerConfig | None = None) -> float:
    """FLOPs of one micro-batch of one device, forward and backward, averaged over the kinds of micro-batch; with
    `executed` what is computed again as well. Other arguments as for `flops_per_step`."""
    if not isinstance(run, TokenizerRun) and not executed:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, activation_checkpointing=False))
    step = num_steps(run) - 1 if step is None else step

    def of_batch(batch: MicroBatch) -> float:
        key = work_of(run, step, tokenizer, batch)
        if key not in _FLOPS:
            module = build_module(run, step, tokenizer)
            _FLOPS[key] = count_flops(lambda: loss_of(module, batch).backward())
        return _FLOPS[key]

    return sum(share * of_batch(batch) for share, batch in micro_batches(run, step))


def work_of(run: Run, step: int | None, tokenizer: TokenizerConfig | None, batch: MicroBatch) -> str:
    """All that decides what a micro-batch computes, in words: what was counted for it need not be counted again."""
    if isinstance(run, TokenizerRun):
        return (f"{run.model} {run.freeze_encoder} {run.discriminator} {_terms_at(run, step).loss} {run.data.size} "
                f"{batch}")
    if run.data is None:
        return f"{run.model} {batch}"
    return f"{run.model} {tokenizer or tokenizer_config(run.tokenizer)} {run.data.size} {batch}"


def count_flops(function: Callable[[], object]) -> float:
    """FLOPs of the convolutions and matrix products that `function` runs, on whatever device."""
    # Fused attention on CPUs is unknown to the formulas, and fused backward passes compute the scores again.
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return float(counter.total)


class _Counter(TorchDispatchMode):
    """The formulas of torch.utils.flop_counter without its tracking of modules, whose hooks forbid autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        kwargs = kwargs or {}
        aten, packet = torch.ops.aten, func._overloadpacket
        formula = flop_registry.get(aten.addmm if packet == aten.addmm_ else packet)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
