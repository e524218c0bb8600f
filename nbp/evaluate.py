"""Score sets of clips against a real set: Frechet and kernel video distance under a named protocol.

python -m nbp.evaluate --real configs/data/procgen.yaml --fake runs/quickstart/generated --protocol quickstart
python -m nbp.evaluate --real A --fake B C --protocol nbp-rfvd+frames=16 --sensitivity --train D
python -m nbp.evaluate --run runs/quickstart --protocol quickstart
A set is a clip set, .npz or .npy, a folder of videos or picture sequences, a .txt list, a data config, or a token
cache (with --tokenizer). Prints the protocol in full with every score, writes OUT/scores.json and .md. Torchrun
shares the work; a stopped run goes on where it was.
"""

import argparse
from functools import partial
from pathlib import Path

from nbp.evaluation.networks import load_network
from nbp.evaluation.protocols import PROTOCOLS, get_protocol, parse_changes
from nbp.evaluation.scoring import evaluate_sets
from nbp.evaluation.statement import markdown_table, table
from nbp.hub.fetch import fetch_i3d
from nbp.system.command import run_command
from nbp.system.distributed import barrier, default_device, rank_and_world
from nbp.system.files import check_writable, write_json, write_text
from nbp.workflows import memorisation, sensitivity
from nbp.workflows.clip_sources import Cut, open_clips


def main(arguments=None):
    options = parse(arguments)
    rank, world = rank_and_world()
    protocol = choose_protocol(options)
    network = load(options, protocol)
    opened = partial(open_set, options, load_tokenizer(options))
    real, fakes = opened(options.real, protocol, True), [opened(fake, protocol) for fake in options.fake]
    if options.train:
        train, held_out = open_both_lists(options, opened, protocol, real)
        memorisation.check(train, held_out, fakes, protocol)
    if options.sensitivity:
        sensitivity.check(real, fakes[0])
    check_writable(options.out, "--out ")
    check_writable(options.cache, "--cache ")
    extraction = dict(batch_size=options.batch_size, num_workers=options.num_workers, rank=rank, world=world,
                      barrier=barrier)
    reports = evaluate_sets(real, fakes, protocol, network, options.cache, options.allow_fewer, options.intervals,
                            options.seed, **extraction)
    if rank == 0:
        rows = markdown_table(reports)
        print("\n\n".join(table(report) for report in reports) + f"\n\n{rows}")
        write_json(Path(options.out) / "scores.json", reports)
        write_text(Path(options.out) / "scores.md", rows + "\n")
        print(f"wrote {options.out}/scores.json")
    if options.train:
        memorisation.run(train, held_out, fakes, protocol, network, options.cache, options.out, options.seed,
                         **extraction)
    if options.sensitivity:
        sensitivity.run(real, fakes[0], protocol, network, options.cache, options.out,
                        lambda p: (opened(options.real, p, True), opened(options.fake[0], p)), partial(load, options),
                        options.sensitivity_clips, options.seed, **extraction)
    return reports


def choose_protocol(options):
    """The preset with the fields of --set and --split changed; its name says so."""
    protocol = get_protocol(options.protocol).replace(**parse_changes(options.set))
    return protocol.replace(real_split=options.split) if options.split else protocol


def open_set(options, tokenizer, source, protocol, real=False):
    """A set of clips, cut as the protocol says."""
    split = "train" if protocol.real_split == "train" else "val"
    return open_clips(source, Cut.of(protocol, real, options.seed), split, tokenizer)


def open_both_lists(options, opened, protocol, real):
    """(training set, held-out set) of --train: of a data config both lists, whichever of them the protocol scores."""
    train = opened(options.train, protocol.replace(real_split="train"), True)
    if protocol.real_split == "train" and str(options.real).endswith((".yaml", ".yml")):
        real = opened(options.real, protocol.replace(real_split="val"), True)
    return train, real


def load_tokenizer(options):
    """The tokenizer that decodes token caches, or None."""
    if options.tokenizer is None:
        return None
    from nbp.download import load_magvit2

    return load_magvit2(options.tokenizer, device=options.device)


def load(options, protocol):
    """The network of a protocol."""
    return load_network(protocol.network, weights_path(protocol, options), options.device, options.trust_torchscript)


def weights_path(protocol, options):
    """The user's weights, or the public Kinetics-400 I3D for the networks that it serves."""
    script = protocol.network == "i3d-styleganv"
    if options.weights and script == (get_protocol(options.protocol).network == "i3d-styleganv"):
        return options.weights
    if script:
        return Path(options.ckpt) / "i3d_torchscript.pt"
    return fetch_i3d(options.ckpt)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", help="a run folder: every set of clips in it against RUN/reconstruction/real.npz")
    add("--real", help="the real set")
    add("--fake", nargs="+", help="one or more sets to score; the real set is read once")
    add("--protocol", required=True, help=f"{', '.join(PROTOCOLS)}, or a YAML file")
    add("--set", nargs="*", default=[], metavar="field=value", help="change fields of the protocol, and so its name")
    add("--split", choices=["train", "val"], help="change which list of a data config the real set is")
    add("--tokenizer", help="model that decodes token caches: native folder or official file")
    add("--train", help="training set of the generator: nearest training clips with a picture, distance to them and "
        "to held-out clips (--real; where that is a data config whose training list is scored, its val list)")
    add("--sensitivity", action="store_true", help="every preset, number of clips and known damage, with plots")
    add("--sensitivity-clips", type=int, default=256, help="real clips that are damaged for it")
    add("--out", default="runs/evaluate", help="folder for scores and pictures")
    add("--cache", default="runs/features", help="folder where features are kept between calls")
    add("--weights", help="weights of the network (i3d_pretrained_400.pt, i3d_torchscript.pt); default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--trust-torchscript", action="store_true", help="run a TorchScript file of unknown hash")
    add("--allow-fewer", action="store_true", help="score fewer clips than the protocol asks for; the name says so")
    add("--intervals", action=argparse.BooleanOptionalAction, default=True,
        help="bootstrap interval, folds and the limit of infinite clips (seconds to minutes)")
    add("--seed", type=int, default=0, help="for choosing clips from larger sets, random places and --intervals")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="decoding processes; 0: a thread")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    options = parser.parse_args(arguments)
    if options.run and not (options.real or options.fake):
        options.real, options.fake = sets_of_run(options.run)
    elif options.run or not (options.real and options.fake):
        parser.error("give either --run, or --real and --fake")
    return options


def sets_of_run(run):
    """Real set and sets to score of a run folder such as the quickstart's.

    Raises:
        ValueError: it has no real clips or nothing to score.
    """
    real, fakes = Path(run) / "reconstruction" / "real.npz", sorted(Path(run).rglob("clips.npz"))
    if not real.is_file() or not fakes:
        raise ValueError(f"{run} is not a finished run: expected {real} and folders with clips.npz")
    return str(real), [str(path.parent) for path in fakes]


if __name__ == "__main__":
    run_command(main)
