"""What a run needs before it is started, in figures and in words: parameters, operations, memory, storage, hours.

Parameters, operations and activations are counted on the real modules on the meta device; shares of ZeRO and buffers
are arithmetic. Hours rest on a utilisation that the caller states.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nbp.config import TokenizerRun, load_run
from nbp.config.runs import STRATEGIES, Run
from nbp.data.annotations import read_annotations
from nbp.data.remote import local_path
from nbp.data.tokens import TokenDataset
from nbp.planning.memory import Memory, device_memory, optimizer_bytes
from nbp.training.flops import GPUS, Gpu, build_module, flops_per_step, micro_batch_flops, micro_batches, num_steps
from nbp.training.generator import GeneratorModule
from nbp.training.module import TrainingModule
from nbp.training.muon import STEPS
from nbp.training.strategies import check_engine
from nbp.training.tokenizer import TokenizerModule

MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "average", "frozen", "buffers", "activations", "logits", "total",
                  "host")


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
class Plan:
    run: Run
    gpus: int
    gpu_memory: int                     # bytes of one
    precision: str
    utilisation: float
    parameters: dict[str, int]          # by part
    stretches: list[Stretch]
    memory: dict[str, Memory]           # of one device, by strategy
    checkpoint: int                     # bytes of one
    model: int                          # bytes of the exported one
    tokens: int                         # bytes of the tokens of 1000 whole clips
    train_clips: int | None             # None: the training set is not here

    @property
    def hours(self) -> float:
        return sum(stretch.hours for stretch in self.stretches)


def plan_run(run: Run, gpu: str | Gpu, utilisation: float, strategies: Sequence[str] | None = None) -> Plan:
    """Plan a run on `trainer.devices` x `trainer.num_nodes` GPUs, `gpu` being a key of GPUS or another device.
    `utilisation` is the share of its peak rate that the run reaches, recomputation counted as work, in (0, 1];
    `strategies` those whose memory is wanted (None: all that the run could have). ValueError: unknown GPU, a
    utilisation outside (0, 1], or a bf16-mixed run on a GPU without bfloat16."""
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
    averaged = _count(module.ema)
    return Plan(
        run, gpus=world, gpu_memory=device.memory_gb * 10**9, precision="bf16-mixed" if low else "32-true",
        utilisation=utilisation, parameters=count_parameters(module),
        stretches=_stretches(run, world, peak * utilisation, muon_flops(module)),
        memory=_memory(run, world, low, strategies),
        checkpoint=checkpoint_bytes(run.trainer.strategy, _count(module) - averaged, averaged, low,
                                    optimizer_bytes(module)),
        model=4 * _count(module.model), tokens=2000 * _tokens(run, run.data.num_frames if run.data is not None else 0),
        train_clips=_train_clips(run))


def count_parameters(module: TokenizerModule | GeneratorModule) -> dict[str, int]:
    """Parameters by part: trained ones, the moving average left out, and those that are frozen."""
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


def muon_flops(module: TrainingModule) -> float:
    """Operations of Muon's matrix products in one step, which every device does by itself."""
    shapes = [sorted((p.shape[0], p.numel() // p.shape[0])) for group in module.parameter_groups() if group.get("muon")
              for p in group["params"]]
    return float(sum(STEPS * (4 * short * short * long + 2 * short ** 3) for short, long in shapes))


def _stretches(run: Run, world: int, rate: float, of_optimizer: float) -> list[Stretch]:
    entries, first, parallel = [], 0, world * run.accumulate
    for steps in _lengths(run):
        step = first + steps - 1
        kinds = micro_batches(run, step)
        executed = model = parallel * micro_batch_flops(run, step, executed=True)
        if not isinstance(run, TokenizerRun) and run.model.activation_checkpointing:
            model = flops_per_step(run, step)
        executed += world * of_optimizer
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
                and not (name.startswith("deepspeed_3") and run.kind == "tokenizer") and not _refused(run, name, low)]
    return device_memory(run, names or possible, world, low, largest)


def _refused(run: Run, strategy: str, low: bool) -> bool:
    try:
        check_engine(dataclasses.replace(run, trainer=dataclasses.replace(
            run.trainer, strategy=strategy, precision="bf16-mixed" if low else "32-true")))
    except ValueError:
        return True
    return False


def _tokens(run: Run, num_frames: int) -> int:
    """Codes of a clip."""
    if not isinstance(run, TokenizerRun):
        return math.prod(run.model.grid)
    return math.prod(run.model.latent_grid(num_frames, *run.data.size))


def _train_clips(run: Run) -> int | None:
    """Size of the training set where it is here, else None."""
    if run.data is None:
        folder = local_path(f"{run.tokens}/train")
        return len(TokenDataset(folder)) if folder is not None and (folder / "meta.json").is_file() else None
    path = Path(run.data.root) / run.data.train_list
    return len(read_annotations(path, run.data.root)) if path.is_file() else None


def checkpoint_bytes(strategy: str, stored: int, averaged: int, low_precision: bool, optimizer: int) -> int:
    """Bytes of a checkpoint of `stored` parameters, `averaged` of which have a moving average, with `optimizer` bytes
    of moments. DeepSpeed keeps its float32 weights with them, and the module's own weights once more, in their
    precision; under ZeRO-3 the module has none."""
    weights = 4
    if strategy.startswith("deepspeed"):
        weights += 0 if strategy.startswith("deepspeed_3") else 2 if low_precision else 4
    return weights * stored + optimizer + 4 * averaged


def plan_in_words(config: str, overrides: Iterable[str], gpus: int, gpu: str, utilisation: float) -> str:
    """Plan a run file on `gpus` devices; arguments and errors as of `load_run` and `plan_run`."""
    run = load_run(config, [f"trainer.devices={gpus}", "trainer.num_nodes=1", *overrides])
    plan = plan_run(run, gpu, utilisation)
    return "\n".join([
        f"{config} on {gpus} x {gpu}, {plan.precision}, strategy {run.trainer.strategy}",
        *_parameters(plan), *_work(plan), *_memory_table(plan), *_data(plan), *_storage(plan),
        f"\ntime at {plan.utilisation:.0%} of the peak rate (an assumption): {plan.hours:.1f} hours, "
        f"{plan.hours * plan.gpus:.0f} GPU hours"])


def _parameters(plan: Plan) -> list[str]:
    total = sum(count for name, count in plan.parameters.items() if "frozen" not in name)
    lines = [f"  {name:28s} {count / 1e6:10.1f} M" for name, count in plan.parameters.items()]
    return [f"\nparameters {total / 1e6:.1f} M trained", *lines]


def _work(plan: Plan) -> list[str]:
    lines = ["\nwork of an optimizer step (forward and backward, all devices)"]
    for stretch in plan.stretches:
        last = stretch.first_step + stretch.steps - 1
        what = f"steps {stretch.first_step} to {last}: {stretch.clips_per_step:.0f} clips"
        what += f" of {stretch.num_frames} frames" if stretch.num_frames else ""
        more = stretch.executed_flops_per_step / stretch.model_flops_per_step
        beside = " and ".join(name for name, there in (
            ("recomputation", not isinstance(plan.run, TokenizerRun) and plan.run.model.activation_checkpointing),
            ("Muon", plan.run.optim.optimizer == "muon")) if there)
        again = f", {more:.2f} times that with {beside}" if more > 1.001 else ""
        lines.append(f"  {what}: {stretch.model_flops_per_step:.3e} FLOPs{again}")
    return lines + [f"  {plan.gpus} devices, {plan.run.accumulate} micro-batches each"]


def _memory_table(plan: Plan) -> list[str]:
    lines = ["\nmemory of one device in GB (10^9 bytes), in the middle of a step",
             f"  {'strategy':20s}" + "".join(f"{column:>12s}" for column in MEMORY_COLUMNS)]
    for name, memory in plan.memory.items():
        cells = "".join(f"{getattr(memory, column) / 1e9:12.2f}" for column in MEMORY_COLUMNS)
        lines.append(f"  {name:20s}{cells}   {'fits' if memory.total <= plan.gpu_memory else 'DOES NOT FIT'}")
    return lines + ["  without CUDA's context, kernels' scratch memory and fragmentation: leave a tenth free"]


def _data(plan: Plan) -> list[str]:
    clips = sum(stretch.steps * stretch.clips_per_step for stretch in plan.stretches)
    tokens = sum(stretch.steps * stretch.tokens_per_step for stretch in plan.stretches)
    lines = [f"\ndata: {num_steps(plan.run)} steps see {clips:.3e} clips, {tokens:.3e} tokens"]
    if plan.train_clips is None:
        return lines + ["  the training set is not here: no number of epochs"]
    return lines + [f"  {plan.train_clips} training clips: {clips / plan.train_clips:.1f} epochs"]


def _storage(plan: Plan) -> list[str]:
    keep = plan.run.trainer.keep_last
    return [f"\nstorage: {plan.checkpoint / 1e9:.2f} GB a checkpoint, {plan.model / 1e9:.2f} GB the model, "
            f"{plan.tokens / 1e6:.2f} MB tokens of 1000 clips",
            f"  {(keep + 1) * plan.checkpoint / 1e9:.2f} GB for {keep + 1} checkpoints, the newest "
            f"(trainer.keep_last={keep}) and the best; one more while the next is written"]
