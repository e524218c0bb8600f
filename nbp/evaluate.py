"""Score sets of clips against a real set: Frechet and kernel video distance under a named protocol.

python -m nbp.evaluate --real configs/data/procgen.yaml --fake runs/quickstart/generated --protocol quickstart
python -m nbp.evaluate --real A --fake B C --protocol nbp-rfvd --set num_frames=16 --intervals
Each of --real and --fake is a clip set, .npz or .npy, a folder of videos or picture sequences, a .txt list or a
data config. Prints the protocol in full with every score, writes OUT/scores.json. torchrun shares the work.
"""

import argparse
from pathlib import Path

import yaml

from nbp.clipsource import open_clips
from nbp.distributed import barrier, default_device, rank_and_world
from nbp.evaluation.features import load_network
from nbp.evaluation.protocols import PROTOCOLS, get_protocol
from nbp.evaluation.scoring import evaluate_sets, markdown_row, table
from nbp.fetch import fetch_i3d
from nbp.files import write_json


def main(arguments=None):
    options = parse(arguments)
    rank, world = rank_and_world()
    protocol = choose_protocol(options)
    network = load_network(protocol.network, weights_path(protocol, options), options.device, options.trust_torchscript)
    real = open_clips(options.real, protocol.num_frames, options.split)
    fakes = [open_clips(source, protocol.num_frames) for source in options.fake]
    reports = evaluate_sets(real, fakes, protocol, network, options.cache, options.allow_fewer, options.intervals,
                            options.seed, batch_size=options.batch_size, num_workers=options.num_workers,
                            rank=rank, world=world, barrier=barrier)
    if rank == 0:
        print("\n\n".join(table(report) for report in reports))
        print("\n" + "\n".join(markdown_row(report) for report in reports))
        write_json(Path(options.out) / "scores.json", reports)
        print(f"wrote {options.out}/scores.json")
    return reports


def choose_protocol(options):
    """The preset with the fields of --set changed; its name says so."""
    changes = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} is not of the form field=value")
        changes[key] = yaml.safe_load(value)
    return get_protocol(options.protocol).replace(**changes)


def weights_path(protocol, options):
    """The user's weights, or the public Kinetics-400 I3D for the networks that it serves."""
    if options.weights:
        return options.weights
    if protocol.network == "i3d-styleganv":
        return Path(options.ckpt) / "i3d_torchscript.pt"
    return fetch_i3d(options.ckpt)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--real", required=True, help="the real set")
    add("--fake", required=True, nargs="+", help="one or more sets to score; the real set is read once")
    add("--protocol", required=True, help=f"{', '.join(PROTOCOLS)}, or a YAML file")
    add("--set", nargs="*", default=[], metavar="field=value", help="change fields of the protocol, and so its name")
    add("--split", default="val", choices=["train", "val"], help="which list of a data config is the real set")
    add("--out", default="runs/evaluate", help="folder for scores.json")
    add("--cache", default="runs/features", help="folder where features are kept between calls")
    add("--weights", help="weights of the network (i3d_pretrained_400.pt, i3d_torchscript.pt); default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--trust-torchscript", action="store_true", help="run a TorchScript file of unknown hash")
    add("--allow-fewer", action="store_true", help="score fewer clips than the protocol asks for; the name says so")
    add("--intervals", action="store_true", help="add bootstrap interval, folds and the limit of infinite clips")
    add("--seed", type=int, default=0, help="for choosing clips from larger sets and for --intervals")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="decoding processes")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
