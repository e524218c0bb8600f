"""Turn videos into a token cache, once per tokenizer.

python -m nbp.tokenize --tokenizer runs/tokenizer_procgen/model --data configs/data/procgen.yaml --out data/tokens
writes OUT/train and OUT/val. Stopped, it goes on where it was; under torchrun the ranks share the work.
"""

import argparse
from pathlib import Path

import torch

from nbp.config import DataConfig, load_config, to_dict
from nbp.data.annotations import annotations_sha256
from nbp.data.dataset import VideoDataset, evaluation_batches
from nbp.data.tokens import TokenWriter
from nbp.download import load_magvit2
from nbp.hub.models import model_hash
from nbp.system.command import run_command
from nbp.system.distributed import default_device, rank_and_world
from nbp.system.progress import progress


def main(arguments=None):
    options = parse(arguments)
    rank, world = rank_and_world()
    data = load_config(DataConfig, options.data, options.overrides)
    tokenizer = load_magvit2(options.tokenizer, device=options.device)
    for split in options.splits:
        dataset = VideoDataset(data, split, train=False, clips_per_video=options.clips_per_video)
        tokenize_split(tokenizer, dataset, Path(options.out) / split, options, rank, world)


def tokenize_split(tokenizer, dataset, out, options, rank=0, world=1):
    """Write the token cache of one split.

    Args:
        tokenizer: `Tokenizer` in eval mode.
        dataset: `VideoDataset` with train=False.
        out: folder of the cache.
        options: batch_size, num_workers, shard_size.
        rank, world: this process and the number of processes.
    """
    data = dataset.data
    meta = {
        "grid": list(tokenizer.config.latent_grid(data.num_frames, data.resolution, data.resolution)),
        "num_codes": tokenizer.num_codes, "tokenizer_hash": model_hash(tokenizer), "classes": dataset.classes,
        "data": to_dict(data) | {"split": dataset.split, "clips_per_video": dataset.clips_per_video,
                                 "annotations_sha256": annotations_sha256(dataset.rows)},
    }
    device = next(tokenizer.parameters()).device
    with TokenWriter(out, meta, rank, world, options.shard_size) as writer, torch.inference_mode():
        if writer.finished:
            print(f"{out}: already complete")
            return
        batches = evaluation_batches(dataset, options.batch_size, options.num_workers, rank, world, writer.next_item)
        total, done = len(range(rank, len(dataset), world)), len(range(rank, writer.next_item, world))
        clips = progress(_encoded(tokenizer, batches, device), total, f"tokenize {dataset.split}", "clips", done)
        for item, indices, label, path in clips:
            writer.add([item], indices[None], [label], [path])


def _encoded(tokenizer, batches, device):
    for batch in batches:
        video = batch["video"].to(device, memory_format=torch.channels_last_3d)
        indices = tokenizer.encode(video)[1].cpu().numpy()
        yield from zip(batch["item"].tolist(), indices, batch["label"].tolist(), batch["path"])


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.tokenize", description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="native model folder or official file")
    parser.add_argument("--data", required=True, help="data config, e.g. configs/data/procgen.yaml")
    parser.add_argument("--out", required=True, help="folder of the cache")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--clips-per-video", type=int, default=1, help="clips per file, evenly spaced")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=1024, help="clips in a file; also what an interruption can lose")
    parser.add_argument("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the data config")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
