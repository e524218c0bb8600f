"""Time the extraction of features, decoding included, against the bare forward pass of the feature network.

python -m nbp.benchmarking.features --clips runs/quickstart/generated/mp4 --protocol nbp-rfvd+frames=16
Both run over the same clips in batches of the same size, in turns; the best of each counts. Without --clips it
writes and reads a small set of h264 files of moving noise. Prints clips per second and the share that is lost.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nbp.data.video_io import write_video
from nbp.evaluation.features import extract_features
from nbp.evaluation.networks import load_network, run_network
from nbp.evaluation.protocols import get_protocol, prepare
from nbp.hub.fetch import fetch_i3d
from nbp.system.command import run_command
from nbp.system.distributed import default_device
from nbp.system.files import write_json
from nbp.workflows.clip_sources import Cut, open_clips


def main(arguments=None):
    options = parse(arguments)
    protocol = get_protocol(options.protocol)
    network = load_network(protocol.network, options.weights or fetch_i3d(options.ckpt), options.device)
    with tempfile.TemporaryDirectory() as folder:
        clips = open_clips(options.clips or made_up(folder, options.max_clips, options.size),
                           Cut.of(protocol, real=False))
        clips = clips.subset(range(min(options.max_clips, len(clips))))
        results = compare(clips, network, protocol, options.batch_size, options.num_workers, options.repeats)
    results |= {"protocol": protocol.name, "clips": len(clips), "batch_size": options.batch_size,
                "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
                "torch": torch.__version__, "num_threads": torch.get_num_threads()}
    print(f"bare forward pass  {results['forward_clips_per_s']:.2f} clips/s\n"
          f"whole extraction   {results['extraction_clips_per_s']:.2f} clips/s, {results['lost']:.1%} slower "
          f"({len(clips)} clips, {protocol.name}, {results['device']}, {results['num_threads']} threads)")
    if options.out:
        write_json(options.out, results)
    return results


def compare(clips, network, protocol, batch_size, num_workers, repeats):
    """Clips per second of the bare network and of the whole extraction, the best of `repeats` turns each."""
    batches = [prepare(torch.stack([clips[n] for n in range(start, min(start + batch_size, len(clips)))]), protocol)
               for start in range(0, len(clips), batch_size)]
    forward(network, batches[:1], protocol)  # the first call chooses algorithms and fills caches
    best = {"forward": float("inf"), "extraction": float("inf")}
    for _ in range(repeats):
        best["forward"] = min(best["forward"], timed(lambda: forward(network, batches, protocol)))
        best["extraction"] = min(best["extraction"], timed(lambda: extract_features(
            clips, network, protocol, batch_size=batch_size, num_workers=num_workers)))
    return {f"{name}_clips_per_s": len(clips) / seconds for name, seconds in best.items()} | {
        "lost": 1 - best["forward"] / best["extraction"]}


@torch.inference_mode()
def forward(network, batches, protocol):
    """The network alone, over inputs that are ready."""
    for batch in batches:
        run_network(network, batch.to(network.device), protocol.precision)
    if network.device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def made_up(folder, count, size):
    """Write `count` files of 17 frames with a texture that moves; returns the folder."""
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (size // 4 + 9, size // 4 + 9, 3)).astype(np.uint8)
        texture = coarse.repeat(4, 0).repeat(4, 1)
        frames = np.stack([texture[t:t + size, 2 * t:2 * t + size] for t in range(17)])
        write_video(Path(folder, f"{number:04d}.mp4"), frames, 8)
    return folder


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.benchmarking.features", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clips", help="a set of clips, as of nbp.evaluate; default: made up")
    add("--protocol", default="tats-2048", help="preset or YAML file")
    add("--weights", help="weights of the network; default: fetched")
    add("--ckpt", default="ckpt", help="folder of fetched weights")
    add("--out", help="JSON file for the figures")
    add("--max-clips", type=int, default=64)
    add("--size", type=int, default=128, help="pixels of made-up clips")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="decoding processes; 0: a thread")
    add("--repeats", type=int, default=3)
    add("--device", default=default_device())
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
