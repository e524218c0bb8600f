"""Generate video: class- or text-conditional clips, or continuations of given frames.

python -m nbp.generate --generator RUN/model --tokenizer RUN/model --num-clips 96 --out runs/generated
python -m nbp.generate ... --data configs/data/procgen.yaml --prefix-frames 5     continue validation clips
Writes OUT/clips.npz (lossless), OUT/meta.json, OUT/mp4/*.mp4 and OUT/grid.png. Clip i depends on the
seed and on i only, whatever the batch size and the number of ranks (torchrun). Resumable.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nbp.system.command import run_command
from nbp.system.distributed import default_device
from nbp.workflows.generating import generate


def main(arguments: Sequence[str] | None = None) -> None:
    generate(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the generator; bf16 is up to 2.7 times as "
        "fast on a GPU, and rounding then lets a clip depend a little on the batch size")
    add("--fps", type=float, default=8, help="frame rate of the mp4 files")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    options = parser.parse_args(arguments)
    if Path(options.out).is_file():
        parser.error(f"--out {options.out} is a file")
    return options


if __name__ == "__main__":
    run_command(main)
