"""A plan in words."""

from collections.abc import Iterable

from nbp.config import load_run
from nbp.planning.plan import Plan, plan_run

MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "average", "frozen", "buffers", "activations", "logits", "total",
                  "host")


def plan_in_words(config: str, overrides: Iterable[str], gpus: int, gpu: str, utilisation: float) -> str:
    """Plan a run file on `gpus` devices; arguments and errors as of `load_run` and `plan_run`."""
    run = load_run(config, [f"trainer.devices={gpus}", "trainer.num_nodes=1", *overrides])
    plan = plan_run(run, gpu, utilisation)
    return "\n".join([
        f"{config} on {gpus} x {gpu}, {plan.precision}, strategy {plan.strategy}", *_parameters(plan), *_work(plan),
        *_memory(plan), *_data(plan), *_storage(plan),
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
        again = f", {more:.2f} times that with recomputation" if more > 1.001 else ""
        lines.append(f"  {what}: {stretch.model_flops_per_step:.3e} FLOPs{again}")
    return lines + [f"  {plan.gpus} devices, {plan.accumulate} micro-batches each"]


def _memory(plan: Plan) -> list[str]:
    lines = ["\nmemory of one device in GB (10^9 bytes), in the middle of a step",
             f"  {'strategy':20s}" + "".join(f"{column:>12s}" for column in MEMORY_COLUMNS)]
    for name, memory in plan.memory.items():
        cells = "".join(f"{getattr(memory, column) / 1e9:12.2f}" for column in MEMORY_COLUMNS)
        lines.append(f"  {name:20s}{cells}   {'fits' if memory.total <= plan.gpu_memory else 'DOES NOT FIT'}")
    return lines + ["  without CUDA's context, kernels' scratch memory and fragmentation: leave a tenth free"]


def _data(plan: Plan) -> list[str]:
    clips = sum(stretch.steps * stretch.clips_per_step for stretch in plan.stretches)
    tokens = sum(stretch.steps * stretch.tokens_per_step for stretch in plan.stretches)
    lines = [f"\ndata: {plan.steps} steps see {clips:.3e} clips, {tokens:.3e} tokens"]
    if plan.train_clips is None:
        return lines + ["  the training set is not here: no number of epochs"]
    return lines + [f"  {plan.train_clips} training clips: {clips / plan.train_clips:.1f} epochs"]


def _storage(plan: Plan) -> list[str]:
    storage, checkpoints = plan.storage, plan.keep_last + 1
    return [f"\nstorage: {storage.checkpoint / 1e9:.2f} GB a checkpoint, {storage.model / 1e9:.2f} GB the model, "
            f"{storage.tokens_per_1000_clips / 1e6:.2f} MB tokens of 1000 clips",
            f"  {checkpoints * storage.checkpoint / 1e9:.2f} GB for {checkpoints} checkpoints, the newest "
            f"(trainer.keep_last={plan.keep_last}) and the best; one more while the next is written"]
