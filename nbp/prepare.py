"""Make or check a data set and write its annotation lists.

python -m nbp.prepare procgen --root data/procgen --train-clips 2400 --val-clips 240
python -m nbp.prepare ucf101 --root data/UCF-101
python -m nbp.prepare k600 --root data/kinetics-dataset/k600
"""

import argparse
import sys

from nbp.data.sources import procgen


def main(arguments=None):
    options = parse(arguments)
    motions = procgen.prepare(options.root, options.train_clips, options.val_clips, options.seed, options.num_threads)
    print(motions)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.prepare", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="source", required=True)
    command = commands.add_parser("procgen", help="render 64x64 clips of twelve games")
    command.add_argument("--root", default="data/procgen")
    command.add_argument("--train-clips", type=int, default=2400)
    command.add_argument("--val-clips", type=int, default=240)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--num-threads", type=int, default=2, help="threads that encode video")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
