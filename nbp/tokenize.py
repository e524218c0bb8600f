"""Turn videos into a token cache, once per tokenizer.

python -m nbp.tokenize --tokenizer runs/quickstart/tokenizer/model --data configs/data/procgen.yaml --out data/tokens
writes OUT/train and OUT/val. Stopped, it goes on where it was; under torchrun the ranks share the work.
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import at_least, run_command
from nbp.system.distributed import default_device
from nbp.workflows.tokenizing import tokenize


def main(arguments: Sequence[str] | None = None) -> None:
    tokenize(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.tokenize", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokenizer", required=True, help="native model folder or official file")
    add("--data", required=True, help="data config, e.g. configs/data/procgen.yaml")
    add("--out", required=True, help="folder of the cache")
    add("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    add("--clips-per-video", type=at_least(1), default=1, help="clips per file, evenly spaced")
    add("--batch-size", type=at_least(1), default=8)
    add("--num-workers", type=at_least(0), default=2)
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder; bf16 (autocast) is several "
        "times as fast where the processor multiplies it and changes a few tokens in a hundred")
    add("--shard-size", type=at_least(1), default=1024, help="clips in a file; also what an interruption can lose")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    add("overrides", nargs="*", default=[], metavar="field=value", help="changes to the data config")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command(main)
