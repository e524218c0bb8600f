"""Generate video: class- or text-conditional clips, or continuations of given frames.

python -m nbp.generate --generator RUN/model --tokenizer RUN/model --num-clips 96 --out runs/generated
python -m nbp.generate ... --data configs/data/procgen.yaml --prefix-frames 5     continue validation clips
Writes OUT/clips.npz (lossless), OUT/meta.json, OUT/mp4/*.mp4 and OUT/grid.png. Clip i depends on the
seed and on i only, whatever the batch size and the number of ranks (torchrun). Resumable.
"""

import argparse
from pathlib import Path

import numpy as np

from nbp.config import DataConfig, load_config, to_dict
from nbp.data import clip_set
from nbp.data.annotations import annotations_sha256
from nbp.data.classes import read_classes
from nbp.data.dataset import VideoDataset
from nbp.download import load_magvit2, load_transformer
from nbp.generator.conditions import condition_encoder
from nbp.hub.models import model_hash
from nbp.system.command import run_command
from nbp.system.distributed import barrier, default_device, rank_and_world
from nbp.system.progress import progress
from nbp.workflows.generating import check_prefix, generate_clips, plan


def main(arguments=None):
    options = parse(arguments)
    rank, world = rank_and_world()
    tokenizer = load_magvit2(options.tokenizer, device=options.device)
    generator = load_transformer(options.generator, tokenizer, device=options.device)
    dataset = None
    if options.data:
        dataset = VideoDataset(load_config(DataConfig, options.data), "val", False, options.clips_per_video)
        check_prefix(options.prefix_frames, generator.config, tokenizer, dataset.data)
    texts = options.texts or (read_classes(options.classes) if options.classes else None)
    requests = plan(generator.config, options.num_clips, options.labels, texts, dataset)
    encode = None if options.unconditional else condition_encoder(generator.config, options.text_tokenizer)
    sampling = dict(greedy=options.greedy, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                    cfg_scale=options.cfg_scale)
    out = clip_set.Parts(options.out, {
        "tokenizer_hash": model_hash(tokenizer), "generator_hash": model_hash(generator), "seed": options.seed,
        "num_clips": len(requests), "labels": options.labels, "texts": texts, "data": options.data,
        "data_config": to_dict(dataset.data) if dataset else None,
        "annotations_sha256": annotations_sha256(dataset.rows) if dataset else None,
        "clips_per_video": options.clips_per_video, "prefix_frames": options.prefix_frames,
        "unconditional": options.unconditional, "fps": options.fps, "precision": options.precision, **sampling})
    if options.precision == "bf16":
        generator.bfloat16()

    done = out.done()
    todo = [request for request in requests[rank::world] if request.number not in done]
    batches = [todo[i:i + options.batch_size] for i in range(0, len(todo), options.batch_size)]
    for batch in progress(batches, len(batches), "generate", "batches"):
        video, indices = generate_clips(generator, tokenizer, batch, encode, dataset, options.prefix_frames,
                                        options.seed, **sampling)
        out.add([r.number for r in batch], video=video, indices=indices, label=np.array([r.label for r in batch]),
                path=np.array([r.path for r in batch], dtype=np.str_))
    barrier()
    if rank == 0:
        out.merge(len(requests))
        clip_set.write_pictures(options.out, options.fps)
        print(f"wrote {len(requests)} clips to {options.out}")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.generate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--generator", required=True, help="native model folder or official checkpoint")
    add("--tokenizer", required=True, help="native model folder or official file")
    add("--out", required=True, help="folder for the clips")
    add("--num-clips", type=int, default=16)
    add("--labels", type=int, nargs="+", help="class ids to cycle through (default: all)")
    add("--texts", nargs="+", help="prompts to cycle through, for text-conditioned models")
    add("--classes", help="classes.txt of a data set: its names, as words, are the prompts of text-conditioned models")
    add("--text-tokenizer", help="Hugging Face tokenizer folder, for text-conditioned models")
    add("--data", help="data config whose validation clips are continued")
    add("--clips-per-video", type=int, default=1, help="with --data: clips of each file, evenly spaced")
    add("--prefix-frames", type=int, default=5, help="with --data: frames that are given, 1 + 4k")
    add("--unconditional", action="store_true", help="leave the label or text out")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8)
    add("--greedy", action="store_true")
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int, default=16000, help="0: off")
    add("--top-p", type=float, default=0.9, help="1: off")
    add("--cfg-scale", type=float, help="classifier-free guidance; 1: none")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the generator; bf16 is up to 2.7 times as fast "
        "on a GPU, and rounding then lets a clip depend a little on the batch size")
    add("--fps", type=float, default=8, help="frame rate of the mp4 files")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    options = parser.parse_args(arguments)
    if Path(options.out).is_file():
        parser.error(f"--out {options.out} is a file")
    return options


if __name__ == "__main__":
    run_command(main)
