"""Score sets of clips against a real set: Frechet and kernel video distance under a named protocol.

python -m nbp.evaluate --real configs/data/procgen.yaml --fake runs/quickstart/generated --protocol quickstart
python -m nbp.evaluate --real A --fake B C --protocol nbp-rfvd+frames=16 --sensitivity --train D
python -m nbp.evaluate --run runs/quickstart --protocol quickstart
A set is a clip set, .npz or .npy, a folder of videos or picture sequences, a .txt list, a data config, or a token
cache (with --tokenizer). Prints the protocol in full with every score, writes OUT/scores.json and .md. Torchrun
shares the work; a stopped run goes on where it was.
"""

import argparse
from collections.abc import Sequence

from nbp.evaluation.protocols import PROTOCOLS
from nbp.evaluation.statement import Report
from nbp.system.command import at_least, run_command
from nbp.system.distributed import default_device
from nbp.workflows.scoring_sets import score_sets


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    return score_sets(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", help="a run folder: every set of clips in it against RUN/reconstruction/real.npz")
    add("--real", help="the real set")
    add("--fake", nargs="+", help="one or more sets to score; the real set is read once")
    add("--protocol", required=True, help=f"{', '.join(PROTOCOLS)}, or a YAML file")
    add("--set", nargs="*", default=[], metavar="field=value", dest="changes",
        help="change fields of the protocol, and so its name")
    add("--split", choices=["train", "val"], help="change which list of a data config the real set is")
    add("--tokenizer", help="model that decodes token caches: native folder or official file")
    add("--train", help="training set of the generator: nearest training clips with a picture, distance to them and "
        "to held-out clips (--real; where that is a data config whose training list is scored, its val list)")
    add("--sensitivity", action="store_true", dest="sensitivity_report",
        help="every preset, number of clips and known damage, with plots")
    add("--sensitivity-clips", type=at_least(1), default=256, help="real clips that are damaged for it")
    add("--drift", action="store_true", help="also score every stretch of long fake clips against the real set")
    add("--out", default="runs/evaluate", help="folder for scores and pictures")
    add("--cache", default="runs/features", help="folder where features are kept between calls")
    add("--weights", help="weights of the network (i3d_pretrained_400.pt, i3d_torchscript.pt); default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--trust-torchscript", action="store_true", help="run a TorchScript file of unknown hash")
    add("--allow-fewer", action="store_true", help="score fewer clips than the protocol asks for; the name says so")
    add("--intervals", action=argparse.BooleanOptionalAction, default=True,
        help="bootstrap interval, folds and the limit of infinite clips (seconds to minutes)")
    add("--seed", type=at_least(0), default=0, help="of choices in larger sets, random places and --intervals")
    add("--batch-size", type=at_least(1), default=8)
    add("--num-workers", type=at_least(0), default=0, help="decoding processes; 0: a thread")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    options = parser.parse_args(arguments)
    if bool(options.run) == bool(options.real or options.fake) or bool(options.real) != bool(options.fake):
        parser.error("give either --run, or --real and --fake")
    return options


if __name__ == "__main__":
    run_command(main)
