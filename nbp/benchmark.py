"""Measure how fast this machine is: a clip in blocks against token by token, or the extraction of features.

python -m nbp.benchmark sampling --generator RUN/model --tokenizer RUN/model --out benchmark.json
python -m nbp.benchmark evaluation --clips runs/quickstart/generated/mp4 --protocol nbp-rfvd+frames=16
`sampling` may be left out.
"""

import argparse
import sys
from collections.abc import Sequence

from nbp.benchmarking.evaluation import benchmark_evaluation
from nbp.benchmarking.sampling import benchmark_sampling
from nbp.system.command import at_least, run_command
from nbp.system.distributed import default_device


def main(arguments: Sequence[str] | None = None) -> None:
    options = vars(parse(arguments))
    measure = options.pop("measure")
    measure(**options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.benchmark", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True)
    sampling = benchmarks.add_parser("sampling", help="next-block against next-token prediction")
    sampling.set_defaults(measure=benchmark_sampling)
    add = sampling.add_argument
    add("--generator", required=True, help="native model folder or official checkpoint")
    add("--tokenizer", required=True, help="native model folder or official file")
    add("--out", help="JSON file for the figures")
    add("--repeats", type=at_least(1), default=3)
    add("--device", default=default_device())
    evaluation = benchmarks.add_parser("evaluation", help="feature extraction against the bare network")
    evaluation.set_defaults(measure=benchmark_evaluation)
    add = evaluation.add_argument
    add("--clips", help="a set of clips, as of nbp.evaluate; default: made up")
    add("--protocol", default="tats-2048", help="preset or YAML file")
    add("--weights", help="weights of the network; default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--out", help="JSON file for the figures")
    add("--max-clips", type=at_least(1), default=64)
    add("--size", type=at_least(1), default=128, help="pixels of made-up clips")
    add("--batch-size", type=at_least(1), default=8)
    add("--num-workers", type=at_least(0), default=0, help="decoding processes; 0: a thread")
    add("--repeats", type=at_least(1), default=3)
    add("--device", default=default_device())
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed and typed[0].startswith("--") and typed[0] != "--help":
        typed.insert(0, "sampling")
    return parser.parse_args(typed)


if __name__ == "__main__":
    run_command(main)
