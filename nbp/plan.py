"""Plan a training run on paper: python -m nbp.plan CONFIG --gpus 64 --gpu a100-80g [section.field=value ...]

Prints parameters, operations, memory of one device by strategy, data, storage and hours. Nothing is trained, no
weights are made: a 4-billion-parameter run is planned in seconds on a laptop.
Operations and memory are within 10% of what small float32 runs of one process take on a CPU, where the tests measure
them, and memory of what four bf16-mixed runs took on one H200. What several devices change is arithmetic.
"""

import argparse

from nbp.config import load_run
from nbp.planning.plan import GPUS, plan
from nbp.system.command import run_command


def main(arguments=None):
    options = parse(arguments)
    overrides = [f"trainer.devices={options.gpus}", "trainer.num_nodes=1", *options.overrides]
    run = load_run(options.config, overrides)
    text = describe(run, plan(run, options.gpu, options.utilisation))
    print(f"{options.config} on {options.gpus} x {options.gpu}, {text}")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.plan", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="run file, e.g. configs/generator_ucf101_base.yaml")
    parser.add_argument("--gpus", type=int, required=True, help="number of devices in all")
    parser.add_argument("--gpu", required=True, choices=GPUS)
    parser.add_argument("--utilisation", type=float, default=0.4,
                        help="share of the peak rate that the run reaches: an assumption, measure yours (default 0.4)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    return parser.parse_intermixed_args(arguments)


def describe(run, numbers):
    """The plan as text."""
    sections = [[f"{numbers['precision']}, strategy {numbers['strategy']}"], _parameters(numbers), _work(run, numbers),
                _memory(numbers), _data(numbers), _storage(run, numbers), _hours(numbers)]
    return "\n".join(line for lines in sections for line in lines)


def _parameters(numbers):
    total = sum(count for name, count in numbers["parameters"].items() if "frozen" not in name)
    lines = [f"  {name:28s} {count / 1e6:10.1f} M" for name, count in numbers["parameters"].items()]
    return [f"\nparameters {total / 1e6:.1f} M trained", *lines]


def _work(run, numbers):
    lines = ["\nwork of an optimizer step (forward and backward, all devices)"]
    for phase in numbers["phases"]:
        last = phase["first_step"] + phase["steps"] - 1
        what = f"steps {phase['first_step']} to {last}: {phase['clips_per_step']:.0f} clips"
        what += f" of {phase['num_frames']} frames" if phase["num_frames"] else ""
        more = phase["executed_flops_per_step"] / phase["model_flops_per_step"]
        again = f", {more:.2f} times that with recomputation" if more > 1.001 else ""
        lines.append(f"  {what}: {phase['model_flops_per_step']:.3e} FLOPs{again}")
    devices, accumulate = run.trainer.devices * run.trainer.num_nodes, run.trainer.accumulate
    return lines + [f"  {devices} devices, {accumulate} micro-batches each"]


def _memory(numbers):
    columns = ("weights", "gradients", "optimizer", "average", "frozen", "buffers", "activations", "logits", "total",
               "host")
    lines = ["\nmemory of one device in GB (10^9 bytes), in the middle of a step",
             f"  {'strategy':20s}" + "".join(f"{column:>12s}" for column in columns)]
    for name, memory in numbers["memory"].items():
        cells = "".join(f"{getattr(memory, column) / 1e9:12.2f}" for column in columns)
        lines.append(f"  {name:20s}{cells}   {'fits' if memory.total <= numbers['gpu_memory'] else 'DOES NOT FIT'}")
    return lines + ["  without CUDA's context, kernels' scratch memory and fragmentation: leave a tenth free"]


def _data(numbers):
    clips, tokens = (sum(phase["steps"] * phase[name] for phase in numbers["phases"])
                     for name in ("clips_per_step", "tokens_per_step"))
    lines = [f"\ndata: {numbers['steps']} steps see {clips:.3e} clips, {tokens:.3e} tokens"]
    train_clips = numbers["data"]["train_clips"]
    if train_clips is None:
        return lines + ["  the training set is not here: no number of epochs"]
    return lines + [f"  {train_clips} training clips: {clips / train_clips:.1f} epochs"]


def _storage(run, numbers):
    storage, kept = numbers["storage"], run.trainer.keep_last + 1
    return [f"\nstorage: {storage['checkpoint'] / 1e9:.2f} GB a checkpoint, {storage['model'] / 1e9:.2f} GB the model, "
            f"{storage['tokens_per_1000_clips'] / 1e6:.2f} MB tokens of 1000 clips",
            f"  {kept * storage['checkpoint'] / 1e9:.2f} GB for {kept} checkpoints, the newest (trainer.keep_last="
            f"{run.trainer.keep_last}) and the best; one more while the next is written"]


def _hours(numbers):
    hours = sum(phase["hours"] for phase in numbers["phases"])
    return [f"\ntime at {numbers['utilisation']:.0%} of the peak rate (an assumption): {hours:.1f} hours, "
            f"{hours * numbers['gpus']:.0f} GPU hours"]


if __name__ == "__main__":
    run_command(main)
