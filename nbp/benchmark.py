"""Measure how fast this machine is, each figure beside the official method and what the hardware allows.

python -m nbp.benchmark sampling|training|tokenizer|data|growth [--size smoke|paper|700M|3B] [--out FILE.json]
python -m nbp.benchmark sampling --generator RUN/model --tokenizer RUN/model    blocks against single tokens
python -m nbp.benchmark evaluation --clips runs/quickstart/generated/mp4 --protocol nbp-rfvd+frames=16
`sampling` may be left out. All but growth: scripts/benchmark.sh
"""

import argparse
import sys
from collections.abc import Sequence

from nbp.system.command import at_least, run_command
from nbp.system.distributed import default_device


def main(arguments: Sequence[str] | None = None) -> None:
    options = vars(parse(arguments))
    measure = options.pop("measure")
    measure(**options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    # Here, as Lightning is an extra.
    from nbp.benchmarking.data import benchmark_data
    from nbp.benchmarking.evaluation import benchmark_evaluation
    from nbp.benchmarking.growth import benchmark_growth
    from nbp.benchmarking.sampling import SIZES, benchmark_sampling
    from nbp.benchmarking.tokenizer import benchmark_tokenizer
    from nbp.benchmarking.training import RECIPES, benchmark_training

    parser = argparse.ArgumentParser(prog="python -m nbp.benchmark", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", help="JSON file for the figures")
    shared.add_argument("--device", default=default_device())
    sized = argparse.ArgumentParser(add_help=False, parents=[shared])
    sized.add_argument("--size", choices=list(SIZES), default="paper", help="paper: 12 layers of width 768")
    once = argparse.ArgumentParser(add_help=False, parents=[sized])
    once.add_argument("--repeats", type=at_least(1), default=1, help="turns; the best one counts")
    sampling = benchmarks.add_parser("sampling", parents=[sized], help="clips")
    sampling.set_defaults(measure=benchmark_sampling)
    sampling.add_argument("--generator", help="native model folder or official checkpoint")
    sampling.add_argument("--tokenizer", help="native model folder or official file")
    sampling.add_argument("--repeats", type=at_least(1), default=3, help="turns of given models; the best one counts")
    training = benchmarks.add_parser("training", parents=[once], help="steps of training and their memory")
    training.set_defaults(measure=benchmark_training)
    training.add_argument("--recipes", nargs="*", default=list(RECIPES), help="run files whose rate is stated")
    tokenizer = benchmarks.add_parser("tokenizer", parents=[once], help="encoding and decoding, also in chunks")
    tokenizer.set_defaults(measure=benchmark_tokenizer)
    growth = benchmarks.add_parser("growth", parents=[once], help="cost against lengths, clips, ids and frames")
    growth.set_defaults(measure=benchmark_growth)
    data = benchmarks.add_parser("data", parents=[once], help="clips from files")
    data.set_defaults(measure=benchmark_data)
    data.add_argument("--num-workers", type=at_least(0), default=0)
    evaluation = benchmarks.add_parser("evaluation", parents=[shared], help="feature extraction, the bare network")
    evaluation.set_defaults(measure=benchmark_evaluation)
    add = evaluation.add_argument
    add("--clips", help="a set of clips, as of nbp.evaluate; default: made up")
    add("--protocol", default="tats-2048", help="preset or YAML file")
    add("--weights", help="weights of the network; default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--max-clips", type=at_least(1), default=64)
    add("--pixels", type=at_least(1), default=128, help="side of made-up clips")
    add("--batch-size", type=at_least(1), default=8)
    add("--num-workers", type=at_least(0), default=0, help="decoding processes; 0: a thread")
    add("--repeats", type=at_least(1), default=3, help="turns; the best one counts")
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed and typed[0].startswith("--") and typed[0] != "--help":
        typed.insert(0, "sampling")
    return parser.parse_args(typed)


if __name__ == "__main__":
    run_command(main)
