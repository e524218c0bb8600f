"""The table that a training run begins with: what will be trained, on what, and for how long."""

import time

import torch

from nbp.config import TokenizerRun
from nbp.config.runs import Run
from nbp.planning.plan import Plan, plan_run
from nbp.system.processor import has_amx
from nbp.training.flops import Gpu, known_gpu, num_steps

# Shares of the peak rate: as `nbp.plan` assumes, and what small runs reached of the products of a CPU, in float32 with
# AVX2, in bfloat16 with AVX-512, and with AMX, where small layers leave most of it unused.
GPU_SHARE, FLOAT32_SHARE, BFLOAT16_SHARE, AMX_SHARE = 0.4, 0.8, 0.5, 0.12
NUM_PRODUCTS = 20


def start_table(run: Run) -> str:
    """Parameters, data, batch, steps, memory and hours of a run of resolved precision on this machine, a line each."""
    low = run.trainer.precision == "bf16-mixed"
    device, share, rate = this_device(low)
    strategy = run.trainer.strategy
    if strategy == "auto" and run.trainer.devices * run.trainer.num_nodes > 1:
        strategy = "ddp"
    plan = plan_run(run, device, share, [strategy])
    flops = sum(stretch.steps * stretch.model_flops_per_step for stretch in plan.stretches)
    batch_size = run.curriculum[-1].batch_size if isinstance(run, TokenizerRun) else run.batch_size
    trained = sum(count for name, count in plan.parameters.items() if "frozen" not in name)
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in plan.parameters.items())
    took = f"{plan.hours:.1f} hours" if plan.hours >= 1 else f"{60 * plan.hours:.1f} minutes"
    rows = {"parameters": f"{trained / 1e6:.2f} M trained; {parts}", "data": _data(run, plan),
            "batch": run.trainer.describe_batch(batch_size), "steps": f"{num_steps(run)}, {flops:.2e} FLOPs in all",
            "memory": f"{plan.memory[strategy].total / 1e9:.2f} GB of a device by the plan; {strategy}, "
                      f"{run.trainer.precision}",
            "time": f"{took} by the plan, at {share:.0%} of {rate}"}
    return "\n".join([f"{run.kind} -> {run.trainer.out}", *(f"  {name:11s} {text}" for name, text in rows.items())])


def this_device(low_precision: bool) -> tuple[Gpu, float, str]:
    """The device here, the share of its rate that a run reaches, and where the rate is from: measured in a tenth of a
    second if no data sheet is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if (gpu := known_gpu(name)) is not None:
        return gpu, GPU_SHARE, f"{name}'s peak rate"
    rate = product_rate(torch.bfloat16 if low_precision else torch.float32) / 1e12
    bfloat16_share = AMX_SHARE if has_amx() else BFLOAT16_SHARE
    share = GPU_SHARE if name else bfloat16_share if low_precision else FLOAT32_SHARE
    return (Gpu(name or "cpu", 0, rate if low_precision else 0, rate), share,
            f"the {rate * 1e3:.0f} GFLOP/s of matrix products here")


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of square matrix products, the best of a few; a CPU's are short, so seldom interrupted."""
    device, side = ("cuda", 4096) if torch.cuda.is_available() else ("cpu", 512)
    matrix, best = torch.ones(side, side, dtype=dtype, device=device), float("inf")
    for _ in range(NUM_PRODUCTS):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])      # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * side ** 3 / best


def _data(run: Run, plan: Plan) -> str:
    seen = sum(stretch.steps * stretch.clips_per_step for stretch in plan.stretches)
    if run.data is None:
        name = str(run.tokens)
    else:
        name = f"{run.data.name}, clips of {run.data.num_frames} frames of {run.data.size[0]}x{run.data.size[1]}"
    clips = "" if plan.train_clips is None else f"; {plan.train_clips} clips, {seen / plan.train_clips:.1f} epochs"
    return name + clips
