"""Plan a training run on paper: python -m nbp.plan CONFIG --gpus 64 --gpu a100-80g [section.field=value ...]

Prints parameters, operations, memory of one device by strategy, data, storage and hours. Nothing is trained, no
weights are made: a 4-billion-parameter run is planned in seconds on a laptop.
Operations and memory are within 10% of what small float32 runs of one process take on a CPU, where the tests measure
them, and memory of what four bf16-mixed runs took on one H200. What several devices change is arithmetic.
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    from nbp.planning.plan import plan_in_words  # here, as Lightning is an extra

    options = parse(arguments)
    print(plan_in_words(options.config, options.overrides, options.gpus, options.gpu, options.utilisation))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.plan", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="run file, e.g. configs/generator_ucf101_base.yaml")
    parser.add_argument("--gpus", type=int, required=True, help="number of devices in all")
    parser.add_argument("--gpu", required=True, help="e.g. a100-80g; any other name lists those that are known")
    parser.add_argument("--utilisation", type=float, default=0.4,
                        help="share of the peak rate that the run reaches: an assumption, measure yours (default 0.4)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.field=value")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command(main)
