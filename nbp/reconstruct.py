"""Encode and decode every clip of a data set, and score the reconstructions: PSNR, SSIM, LPIPS, rFVD, code use.

python -m nbp.reconstruct --tokenizer RUN/model --data configs/data/procgen.yaml --out runs/reconstruction
Writes OUT/clips.npz (reconstructions and indices), OUT/real.npz (originals), OUT/sheet.png, OUT/scores.json and .md.
Resumable; torchrun shares the work.
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import at_least, run_command
from nbp.system.distributed import default_device
from nbp.workflows.reconstructing import reconstruct


def main(arguments: Sequence[str] | None = None) -> None:
    reconstruct(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.reconstruct", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tokenizer", required=True, help="native model folder or official file")
    add("--data", required=True, help="data config, e.g. configs/data/procgen.yaml")
    add("--split", default="val", choices=["train", "val"])
    add("--out", required=True, help="folder for clips and scores")
    add("--protocol", default="quickstart", help="of rFVD; nbp-rfvd for figures comparable with published ones")
    add("--max-clips", type=at_least(1), help="only the first clips of the list; the name says so")
    add("--allow-fewer", action="store_true", help="score fewer clips than the protocol asks for; the name says so")
    add("--fvd", action=argparse.BooleanOptionalAction, default=True, help="rFVD, most of the time on a CPU")
    add("--intervals", action=argparse.BooleanOptionalAction, default=True,
        help="bootstrap interval, folds and the limit of infinite clips of the distance (seconds to minutes)")
    add("--lpips", default="vgg", choices=["vgg", "alex"], help="network of LPIPS")
    add("--weights", help="I3D weights (default: fetched)")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--cache", help="folder where features are kept (default: features beside OUT)")
    add("--batch-size", type=at_least(1), default=8)
    add("--num-workers", type=at_least(0), default=0, help="decoding processes")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    add("overrides", nargs="*", default=[], metavar="field=value", help="changes to the data config")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command(main)
