"""From a data set to token caches; `nbp.tokenize` is the command around it.

Legend: B batch, t h w latent grid.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from nbp.config import DataConfig, load_config, to_dict
from nbp.data.dataset import Batch, VideoDataset, evaluation_batches
from nbp.data.tokens import TokenMeta, TokenWriter
from nbp.hub.models import model_hash
from nbp.system.distributed import rank_and_world
from nbp.system.progress import progress
from nbp.tokenizer.model import Tokenizer


def tokenize(*, tokenizer: str, data: str, overrides: Sequence[str], out: str | Path, splits: Sequence[str],
             clips_per_video: int, batch_size: int, num_workers: int, shard_size: int, precision: str,
             device: str) -> None:
    """Write the token caches OUT/SPLIT of a data set; the arguments are those of the command."""
    config = load_config(DataConfig, data, overrides)
    model = Tokenizer.from_pretrained(tokenizer, device=device)
    for split in splits:
        dataset = VideoDataset(config, split, train=False, clips_per_video=clips_per_video)
        tokenize_split(model, dataset, Path(out) / split, batch_size, num_workers, shard_size, precision)


def tokenize_split(tokenizer: Tokenizer, dataset: VideoDataset, out: Path, batch_size: int = 8, num_workers: int = 0,
                   shard_size: int = 1024, precision: str = "fp32") -> None:
    """Write this rank's part of the token cache of one split. A file holds `shard_size` clips, what an interruption can
    lose; precision is fp32 (that of the weights) or bf16 (autocast)."""
    rank, world = rank_and_world()
    data = dataset.data
    meta: TokenMeta = {
        "grid": list(tokenizer.config.latent_grid(data.num_frames, *data.size)),
        "num_codes": tokenizer.num_codes, "tokenizer_hash": model_hash(tokenizer), "classes": dataset.classes,
        "data": to_dict(data) | {"split": dataset.split, "clips_per_video": dataset.clips_per_video,
                                 **dataset.digests()},
    }
    if precision != "fp32":     # left out otherwise, as in older caches, which such a run goes on with
        meta["data"]["precision"] = precision
    with TokenWriter(out, meta, rank, world, shard_size) as writer, torch.inference_mode():
        dataset.recall_bad(writer.left_out(len(dataset)), out)
        if writer.finished:
            print(f"{out}: already complete" + (f", without {dataset.num_bad_files} bad files"
                                                if dataset.num_bad_files else ""))
            return
        batches = evaluation_batches(dataset, batch_size, num_workers, rank, world, writer.next_item)
        total, done = len(range(rank, len(dataset), world)), len(range(rank, writer.next_item, world))
        clips = progress(_encoded(tokenizer, batches, precision), total, f"tokenize {dataset.split}", "clips", done)
        for item, indices, label, path in clips:
            writer.add([item], indices[None], [label], [path])


def _encoded(tokenizer: Tokenizer, batches: Iterable[Batch],
             precision: str) -> Iterator[tuple[int, np.ndarray, int, str]]:
    """(item, indices (t, h, w), label, path) of every clip."""
    device = next(tokenizer.parameters()).device
    for batch in batches:
        video = batch["video"].to(device, memory_format=torch.channels_last_3d)
        if precision == "bf16":
            with torch.autocast(video.device.type, torch.bfloat16):
                latents = tokenizer.encoder(video)  # (B, d, t, h, w)
            encoded = tokenizer.quantize(latents)[1]
        else:
            encoded = tokenizer.encode(video)[1]
        indices = encoded.cpu().numpy()  # (B, t, h, w)
        yield from zip(batch["item"].tolist(), indices, batch["label"].tolist(), batch["path"])
