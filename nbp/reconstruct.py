"""Encode and decode every clip of a data set, and score the reconstructions: PSNR, SSIM, LPIPS, rFVD, code use.

python -m nbp.reconstruct --tokenizer RUN/model --data configs/data/procgen.yaml --out runs/reconstruction
Writes OUT/clips.npz (reconstructions and indices), OUT/real.npz (originals), OUT/scores.json and .md. Resumable;
torchrun shares the work.
"""

import argparse
import dataclasses
from pathlib import Path

from nbp.config import DataConfig, load_config, to_dict
from nbp.data import clip_set
from nbp.data.dataset import VideoDataset
from nbp.download import load_magvit2
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.networks import load_network
from nbp.evaluation.protocols import get_protocol
from nbp.evaluation.scoring import counts
from nbp.evaluation.statement import markdown_table, table
from nbp.hub.fetch import fetch_i3d, fetch_lpips
from nbp.hub.models import model_hash
from nbp.system.command import run_command
from nbp.system.distributed import barrier, default_device, rank_and_world
from nbp.system.files import sha256, write_json, write_text
from nbp.workflows.reconstructing import reconstruct_clips, score_folder, split_real


def main(arguments=None):
    options = parse(arguments)
    rank, world = rank_and_world()
    protocol = get_protocol(options.protocol)
    if protocol.quantize == "none" or protocol.network == "i3d-styleganv":
        raise ValueError(f"--protocol {options.protocol}: reconstructions are kept as 8 bit and scored by the public "
                         "I3D; accepted are protocols with quantize floor or round, as quickstart and nbp-rfvd")
    data = load_config(DataConfig, options.data, options.overrides)
    if data.max_bad_files:
        raise ValueError("data.max_bad_files must be 0: a score is stated for the whole list")
    data = dataclasses.replace(data, fps=protocol.fps or data.fps)
    dataset = VideoDataset(data, options.split, train=False, strict=True)
    num_clips = min(options.max_clips or len(dataset), len(dataset))
    protocol = as_scored(protocol, options.split, data.num_frames, num_clips, len(dataset), options.allow_fewer)
    tokenizer = load_magvit2(options.tokenizer, data.resolution, options.device)
    tokenizer.config.latent_grid(data.num_frames, data.resolution, data.resolution)   # refuses what it cannot encode

    parts = clip_set.Parts(options.out, {"tokenizer_hash": model_hash(tokenizer), "data": to_dict(data),
                                        "split": options.split, "num_clips": num_clips, "quantize": protocol.quantize})
    reconstruct_clips(tokenizer, dataset, parts, num_clips, protocol.quantize, options.batch_size,
                      options.num_workers, rank, world)
    barrier()
    if rank == 0:
        parts.merge(num_clips)
        split_real(options.out)
    barrier()

    network = load_network(protocol.network, options.weights or fetch_i3d(options.ckpt), options.device)
    lpips_path = fetch_lpips(options.lpips, options.ckpt)
    lpips = LPIPS.from_file(lpips_path, options.lpips)
    report = score_folder(options.out, tokenizer.num_codes, protocol, network, lpips,
                          options.cache or Path(options.out).parent / "features", options.batch_size, options.device,
                          allow_fewer=options.allow_fewer, intervals=options.intervals, rank=rank, world=world,
                          barrier=barrier) | {"lpips_weights_sha256": sha256(lpips_path)}
    if rank == 0:
        row = markdown_table([report])
        write_json(Path(options.out) / "scores.json", report)
        write_text(Path(options.out) / "scores.md", row + "\n")
        print(f"{table(report)}\n\n{row}\nwrote {options.out}/scores.json")


def as_scored(protocol, split, num_frames, num_clips, list_length, allow_fewer):
    """The protocol as the reconstructions meet it; its name says what differs: split, places, and with --max-clips
    the counts.

    Raises:
        ValueError: clips are too short or too few for it.
    """
    if protocol.num_frames and num_frames < protocol.num_frames:
        raise ValueError(f"data.num_frames is {num_frames}; protocol {protocol.name} needs {protocol.num_frames}")
    if split != ("train" if protocol.real_split == "train" else "val"):
        protocol = protocol.replace(real_split=split)
    protocol = protocol.replace(real_clips="centre", clips_per_video=1)
    if num_clips < list_length:
        protocol = protocol.replace(num_real=num_clips, num_fake=num_clips, repeats=1)
    counts(protocol, num_clips, num_clips, allow_fewer)
    return protocol


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.reconstruct", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tokenizer", required=True, help="native model folder or official file")
    add("--data", required=True, help="data config, e.g. configs/data/procgen.yaml")
    add("--split", default="val", choices=["train", "val"])
    add("--out", required=True, help="folder for clips and scores")
    add("--protocol", default="quickstart", help="of rFVD; nbp-rfvd for figures comparable with published ones")
    add("--max-clips", type=int, help="only the first clips of the list; the name says so")
    add("--allow-fewer", action="store_true", help="score fewer clips than the protocol asks for; the name says so")
    add("--intervals", action=argparse.BooleanOptionalAction, default=True,
        help="bootstrap interval, folds and the limit of infinite clips of the distance (seconds to minutes)")
    add("--lpips", default="vgg", choices=["vgg", "alex"], help="network of LPIPS")
    add("--weights", help="I3D weights (default: fetched)")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--cache", help="folder where features are kept (default: features beside OUT)")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="decoding processes")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    add("overrides", nargs="*", metavar="field=value", help="changes to the data config")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
