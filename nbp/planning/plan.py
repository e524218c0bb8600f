"""What a run needs before it is started: parameters, operations, memory, storage, hours. `nbp.plan` prints it.

Parameters, operations and activations are counted on the real modules on the meta device; shares of ZeRO and buffers
are arithmetic. Hours rest on a utilisation that the caller states.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from nbp.data.annotations import read_annotations
from nbp.data.tokens import TokenDataset
from nbp.planning.dry_run import build_module, micro_batches, num_steps
from nbp.planning.memory import STRATEGIES, device_memory, frozen_networks
from nbp.training.flops import flops_per_step, micro_batch_flops


@dataclass(frozen=True)
class Gpu:
    """Memory and dense peak rates of an accelerator, from its maker's data sheet."""

    memory_gb: int
    bf16_tflops: float      # 0: bfloat16 is not multiplied in hardware
    fp32_tflops: float


# nvidia.com data sheets: V100, A100, H100 and H200 (SXM), L40S, RTX 4090 (Ada white paper, float32 accumulation).
GPUS = {"v100-32g": Gpu(32, 0, 15.7), "a100-40g": Gpu(40, 312, 19.5), "a100-80g": Gpu(80, 312, 19.5),
        "h100-80g": Gpu(80, 989, 67), "h200-141g": Gpu(141, 989, 67), "l40s-48g": Gpu(48, 362, 91.6),
        "rtx4090-24g": Gpu(24, 165, 82.6)}


def plan(run, gpu, utilisation):
    """Plan a run on `trainer.devices` x `trainer.num_nodes` GPUs.

    Args:
        run: `TokenizerRun` or `GeneratorRun`.
        gpu: key of GPUS.
        utilisation: share of the GPU's peak rate that the run reaches, recomputation counted as work, in (0, 1].

    Returns:
        dict of numbers; bytes, operations, hours.

    Raises:
        ValueError: unknown GPU, a utilisation outside (0, 1], or a bf16-mixed run on a GPU without bfloat16.
    """
    if gpu not in GPUS:
        raise ValueError(f"--gpu is {gpu!r}; accepted: {', '.join(GPUS)}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation must be in (0, 1], got {utilisation}")
    low = _low_precision(run.trainer.precision, gpu)
    peak = 1e12 * (GPUS[gpu].bf16_tflops if low else GPUS[gpu].fp32_tflops)
    module, world = build_module(run), run.trainer.devices * run.trainer.num_nodes
    return {
        "gpus": world, "precision": "bf16-mixed" if low else "32-true", "strategy": run.trainer.strategy,
        "utilisation": utilisation, "parameters": parameters(module), "phases": _phases(run, world, peak * utilisation),
        "memory": _memory(run, world, low), "gpu_memory": GPUS[gpu].memory_gb * 10**9, "steps": num_steps(run),
        "data": _data(run), "storage": _storage(run, module, low),
    }


def _low_precision(precision, gpu):
    if precision == "bf16-mixed" and not GPUS[gpu].bf16_tflops:
        raise ValueError(f"trainer.precision=bf16-mixed, but {gpu} does not multiply bfloat16: use 32-true")
    return precision != "32-true" and bool(GPUS[gpu].bf16_tflops)


def parameters(module):
    """Number of parameters by part, name -> count."""
    model = module.model
    if module.run.kind == "tokenizer":
        parts = {"encoder": model.encoder, "decoder": model.decoder}
        if module.discriminator is not None:
            parts["critics"] = module.discriminator
        parts |= {"perceptual network (frozen)": network for network in frozen_networks(module)}
        return {name: _count(part) for name, part in parts.items()}
    frozen = {"tokenizer (frozen)": _count(network) for network in frozen_networks(module)}
    counts = {"token embedding": _count(model.token_embedding), "layers": _count(model.transformer.layers),
              "head": _count(model.head)}
    return counts | {"positions and norms": _count(model) - sum(counts.values())} | frozen


def _count(module):
    return sum(p.numel() for p in module.parameters())


def _phases(run, world, rate):
    """One entry per stretch of steps that do the same work."""
    entries, first = [], 0
    for steps in _stretches(run):
        step, parallel = first + steps - 1, world * run.trainer.accumulate
        kinds = micro_batches(run, step)
        executed = model = parallel * micro_batch_flops(run, step, executed=True)
        if run.kind == "generator" and run.model.activation_checkpointing:
            model = flops_per_step(run, step)
        entries.append({"first_step": first, "steps": steps, "num_frames": kinds[0][1].num_frames,
                        "clips_per_step": parallel * sum(share * batch.batch_size for share, batch in kinds),
                        "tokens_per_step": parallel * sum(share * batch.batch_size * _tokens(run, batch.num_frames)
                                                          for share, batch in kinds),
                        "model_flops_per_step": model, "executed_flops_per_step": executed,
                        "hours": steps * executed / (world * rate) / 3600})
        first += steps
    return entries


def _stretches(run):
    """Numbers of steps between changes of clip length or of loss terms."""
    if run.kind == "generator":
        return [run.max_steps]
    edges = {run.loss.perceptual_start_step if run.loss.perceptual else 0,
             run.loss.adversarial_start_step if run.loss.adversarial else 0}
    result, first = [], 0
    for phase in run.curriculum:
        cuts = [first, *sorted(edge for edge in edges if first < edge < first + phase.steps), first + phase.steps]
        result += [end - start for start, end in zip(cuts, cuts[1:])]
        first += phase.steps
    return result


def _memory(run, world, low):
    """Memory of one device for each strategy, at the largest micro-batch of the run."""
    if run.kind == "generator":
        [(_, largest)] = micro_batches(run)
    else:
        ends, first = [], 0
        for phase in run.curriculum:
            first += phase.steps
            ends += [batch for _, batch in micro_batches(run, first - 1)]
        largest = max(ends, key=lambda batch: batch.batch_size * batch.num_frames)
    # "auto" is one device without an engine; a tokenizer cannot be split by ZeRO-3.
    names = [name for name in STRATEGIES if (name != "auto" or world == 1)
             and not (name.startswith("deepspeed_3") and run.kind == "tokenizer")]
    return device_memory(run, names, world, low, largest)


def _tokens(run, num_frames):
    """Codes of a clip."""
    if run.kind == "generator":
        return math.prod(run.model.grid)
    return math.prod(run.model.latent_grid(num_frames, run.data.resolution, run.data.resolution))


def _data(run):
    """Size of the training set where it is here, else None."""
    if run.kind == "generator" and run.tokens is not None:
        folder = Path(run.tokens) / "train"
        return {"train_clips": len(TokenDataset(folder)) if (folder / "meta.json").is_file() else None}
    path = Path(run.data.root) / run.data.train_list
    return {"train_clips": len(read_annotations(path)) if path.is_file() else None}


def _storage(run, module, low):
    """Bytes of a checkpoint, of the exported model and of the tokens of 1000 whole clips."""
    averaged = 0 if module.ema is None else _count(module.ema)
    size = checkpoint_bytes(run.trainer.strategy, _count(module) - averaged, averaged, low)
    return {"checkpoint": size, "model": 4 * _count(module.model),
            "tokens_per_1000_clips": 2000 * _tokens(run, run.data.num_frames if run.data is not None else None)}


def checkpoint_bytes(strategy, trained, averaged, low_precision):
    """Bytes of a checkpoint of `trained` parameters, `averaged` of which have a moving average.

    AdamW keeps two float32 moments. DeepSpeed keeps its float32 weights with them, and the module's own weights once
    more, in their precision; under ZeRO-3 the module has none.
    """
    weights = 4
    if strategy.startswith("deepspeed"):
        weights += 0 if strategy.startswith("deepspeed_3") else 2 if low_precision else 4
    return (weights + 8) * trained + 4 * averaged
