"""The extraction of features, decoding included, against the bare forward pass of the feature network.

Both run over the same clips in batches of the same size, in turns; the best of each counts.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from nbp.data.video_io import write_video
from nbp.evaluation.features import Clips, Extraction, extract_features
from nbp.evaluation.networks import FeatureNetwork, load_network, run_network
from nbp.evaluation.protocols import Protocol, get_protocol, prepare
from nbp.evaluation.statement import device_name
from nbp.hub.fetch import fetch_i3d
from nbp.system.files import write_json
from nbp.system.timing import timed
from nbp.workflows.clip_sources import Cut, open_clips


class Rates(TypedDict):
    """Clips per second of both, and the share of the bare network's that is lost."""

    forward_clips_per_s: float
    extraction_clips_per_s: float
    lost: float


def benchmark_evaluation(*, clips: str | None, protocol: str, weights: str | None, ckpt: str, out: str | None,
                         max_clips: int, pixels: int, batch_size: int, num_workers: int, repeats: int,
                         device: str) -> None:
    """Print clips per second and the share that is lost, and write them to OUT; the arguments are the command's.

    Without `clips` it writes and reads a small set of h264 files of moving noise.
    """
    rules = get_protocol(protocol)
    network = load_network(rules.network, weights or fetch_i3d(ckpt), device)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_clips(clips or made_up(folder, max_clips, pixels), Cut.of(rules, real=False))
        opened = opened.subset(range(min(max_clips, len(opened))))
        rates = compare(opened, network, rules, batch_size, num_workers, repeats)
    where, threads = device_name(device), torch.get_num_threads()
    print(f"bare forward pass  {rates['forward_clips_per_s']:.2f} clips/s\n"
          f"whole extraction   {rates['extraction_clips_per_s']:.2f} clips/s, {rates['lost']:.1%} slower "
          f"({len(opened)} clips, {rules.name}, {where}, {threads} threads)")
    if out:
        write_json(out, {**rates, "protocol": rules.name, "clips": len(opened), "batch_size": batch_size,
                         "device": where, "torch": torch.__version__, "num_threads": threads})


def compare(clips: Clips, network: FeatureNetwork, protocol: Protocol, batch_size: int, num_workers: int,
            repeats: int) -> Rates:
    """Clips per second of the bare network and of the whole extraction, the best of `repeats` turns each."""
    batches = [prepare(torch.stack([clips[n] for n in range(start, min(start + batch_size, len(clips)))]), protocol)
               for start in range(0, len(clips), batch_size)]
    how = Extraction(batch_size=batch_size, num_workers=num_workers)
    forward(network, batches[:1], protocol)  # the first call chooses algorithms and fills caches
    bare, whole = [], []
    for _ in range(repeats):
        bare.append(timed(lambda: forward(network, batches, protocol)))
        whole.append(timed(lambda: extract_features(clips, network, protocol, how)))
    return {"forward_clips_per_s": len(clips) / min(bare), "extraction_clips_per_s": len(clips) / min(whole),
            "lost": 1 - min(bare) / min(whole)}


@torch.inference_mode()
def forward(network: FeatureNetwork, batches: Sequence[Tensor], protocol: Protocol) -> None:
    """The network alone, over inputs that are ready."""
    for batch in batches:
        run_network(network, batch.to(network.device), protocol.precision)


def made_up(folder: str, count: int, size: int) -> str:
    """Write `count` files of 17 frames with a texture that moves; returns the folder."""
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (size // 4 + 9, size // 4 + 9, 3)).astype(np.uint8)
        texture = coarse.repeat(4, 0).repeat(4, 1)
        frames = np.stack([texture[t:t + size, 2 * t:2 * t + size] for t in range(17)])
        write_video(Path(folder, f"{number:04d}.mp4"), frames, 8)
    return folder
