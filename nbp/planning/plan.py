"""What a run needs before it is started: parameters, operations, memory, storage, hours. `text.py` puts it in words.

Parameters, operations and activations are counted on the real modules on the meta device; shares of ZeRO and buffers
are arithmetic. Hours rest on a utilisation that the caller states.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nbp.config import TokenizerRun
from nbp.config.runs import STRATEGIES, Run
from nbp.data.annotations import read_annotations
from nbp.data.tokens import TokenDataset
from nbp.planning.memory import Memory, device_memory
from nbp.training.flops import GPUS, Gpu, build_module, flops_per_step, micro_batch_flops, micro_batches, num_steps
from nbp.training.generator import GeneratorModule
from nbp.training.tokenizer import TokenizerModule


@dataclass(frozen=True)
class Stretch:
    """Steps that do the same work, on all devices together."""

    first_step: int
    steps: int
    num_frames: int
    clips_per_step: float
    tokens_per_step: float
    model_flops_per_step: float
    executed_flops_per_step: float      # with what activation checkpointing computes again
    hours: float


@dataclass(frozen=True)
class Storage:
    """Bytes on disk."""

    checkpoint: int
    model: int
    tokens_per_1000_clips: int


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    gpus: int
    gpu_memory: int                     # bytes of one
    precision: str
    strategy: str
    utilisation: float
    accumulate: int
    keep_last: int
    steps: int
    parameters: dict[str, int]          # by part
    stretches: list[Stretch]
    memory: dict[str, Memory]           # of one device, by strategy
    storage: Storage
    train_clips: int | None             # None: the training set is not here

    @property
    def hours(self) -> float:
        return sum(stretch.hours for stretch in self.stretches)


def plan_run(run: Run, gpu: str | Gpu, utilisation: float, strategies: Sequence[str] | None = None) -> Plan:
    """Plan a run on `trainer.devices` x `trainer.num_nodes` GPUs.

    Args:
        gpu: key of GPUS, or another device.
        utilisation: share of the GPU's peak rate that the run reaches, recomputation counted as work, in (0, 1].
        strategies: whose memory is wanted; None: all that the run could have.

    Raises:
        ValueError: unknown GPU, a utilisation outside (0, 1], or a bf16-mixed run on a GPU without bfloat16.
    """
    device = gpu if isinstance(gpu, Gpu) else GPUS.get(gpu)
    if device is None:
        raise ValueError(f"--gpu is {gpu!r}; accepted: {', '.join(GPUS)}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation must be in (0, 1], got {utilisation}")
    if run.trainer.precision == "bf16-mixed" and not device.bf16_tflops:
        raise ValueError(f"trainer.precision=bf16-mixed, but {gpu} does not multiply bfloat16: use 32-true")
    low = run.trainer.precision != "32-true" and bool(device.bf16_tflops)
    peak = 1e12 * (device.bf16_tflops if low else device.fp32_tflops)
    module, world = build_module(run), run.trainer.devices * run.trainer.num_nodes
    return Plan(
        gpus=world, gpu_memory=device.memory_gb * 10**9, precision="bf16-mixed" if low else "32-true",
        strategy=run.trainer.strategy, utilisation=utilisation, accumulate=run.accumulate,
        keep_last=run.trainer.keep_last, steps=num_steps(run), parameters=count_parameters(module),
        stretches=_stretches(run, world, peak * utilisation), memory=_memory(run, world, low, strategies),
        storage=_storage(run, module, low), train_clips=_train_clips(run))


def count_parameters(module: TokenizerModule | GeneratorModule) -> dict[str, int]:
    """Number of parameters by part."""
    if isinstance(module, TokenizerModule):
        counts = {"encoder": _count(module.model.encoder), "decoder": _count(module.model.decoder)}
        if module.discriminator is not None:
            counts["critics"] = _count(module.discriminator)
        return counts | ({"perceptual network (frozen)": _count(module.frozen)} if module.frozen is not None else {})
    model = module.model
    counts = {"token embedding": _count(model.token_embedding), "layers": _count(model.transformer.layers),
              "head": _count(model.head)}
    counts["positions and norms"] = _count(model) - sum(counts.values())
    return counts | ({"tokenizer (frozen)": _count(module.frozen)} if module.frozen is not None else {})


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _stretches(run: Run, world: int, rate: float) -> list[Stretch]:
    """One entry per stretch of steps that do the same work."""
    entries, first, parallel = [], 0, world * run.accumulate
    for steps in _lengths(run):
        step = first + steps - 1
        kinds = micro_batches(run, step)
        executed = model = parallel * micro_batch_flops(run, step, executed=True)
        if not isinstance(run, TokenizerRun) and run.model.activation_checkpointing:
            model = flops_per_step(run, step)
        entries.append(Stretch(
            first, steps, kinds[0][1].num_frames, parallel * sum(share * batch.batch_size for share, batch in kinds),
            parallel * sum(share * batch.batch_size * _tokens(run, batch.num_frames) for share, batch in kinds),
            model, executed, hours=steps * executed / (world * rate) / 3600))
        first += steps
    return entries


def _lengths(run: Run) -> list[int]:
    """Numbers of steps between changes of clip length or of loss terms."""
    if not isinstance(run, TokenizerRun):
        return [run.max_steps]
    edges = {run.loss.perceptual_start_step if run.loss.perceptual else 0,
             run.loss.adversarial_start_step if run.loss.adversarial else 0}
    result, first = [], 0
    for phase in run.curriculum:
        cuts = [first, *sorted(edge for edge in edges if first < edge < first + phase.steps), first + phase.steps]
        result += [end - start for start, end in zip(cuts, cuts[1:])]
        first += phase.steps
    return result


def _memory(run: Run, world: int, low: bool, names: Sequence[str] | None) -> dict[str, Memory]:
    """Memory of one device for each strategy, at the largest micro-batch of the run."""
    batches, first = [], 0
    for steps in _lengths(run):
        first += steps
        batches += [batch for _, batch in micro_batches(run, first - 1)]
    largest = max(batches, key=lambda batch: batch.batch_size * batch.num_frames)
    # "auto" is one device without an engine; a tokenizer cannot be split by ZeRO-3.
    possible = [name for name in STRATEGIES if (name != "auto" or world == 1)
                and not (name.startswith("deepspeed_3") and run.kind == "tokenizer")]
    return device_memory(run, names or possible, world, low, largest)


def _tokens(run: Run, num_frames: int) -> int:
    """Codes of a clip."""
    if not isinstance(run, TokenizerRun):
        return math.prod(run.model.grid)
    return math.prod(run.model.latent_grid(num_frames, *run.data.size))


def _train_clips(run: Run) -> int | None:
    """Size of the training set where it is here, else None."""
    if run.data is None:
        folder = Path(f"{run.tokens}/train")
        return len(TokenDataset(folder)) if (folder / "meta.json").is_file() else None
    path = Path(run.data.root) / run.data.train_list
    return len(read_annotations(path)) if path.is_file() else None


def _storage(run: Run, module: TokenizerModule | GeneratorModule, low: bool) -> Storage:
    """Of a checkpoint, of the exported model and of the tokens of 1000 whole clips."""
    averaged = _count(module.ema)
    size = checkpoint_bytes(run.trainer.strategy, _count(module) - averaged, averaged, low)
    tokens = _tokens(run, run.data.num_frames if run.data is not None else 0)
    return Storage(size, 4 * _count(module.model), 2000 * tokens)


def checkpoint_bytes(strategy: str, trained: int, averaged: int, low_precision: bool) -> int:
    """Bytes of a checkpoint of `trained` parameters, `averaged` of which have a moving average.

    AdamW keeps two float32 moments. DeepSpeed keeps its float32 weights with them, and the module's own weights once
    more, in their precision; under ZeRO-3 the module has none.
    """
    weights = 4
    if strategy.startswith("deepspeed"):
        weights += 0 if strategy.startswith("deepspeed_3") else 2 if low_precision else 4
    return (weights + 8) * trained + 4 * averaged
