"""Generate video: class- or text-conditional clips, or continuations of given frames.

python -m nbp.generate ckpt/NBP-procgen --labels coinrun ninja --num-clips 96 --out runs/generated
python -m nbp.generate --generator RUN/model --tokenizer RUN/model --out runs/generated
python -m nbp.generate ... --data configs/data/procgen.yaml --prefix-frames 5     continue validation clips
python -m nbp.generate ... --num-frames 129 --stream     of any length, in videos that can be watched meanwhile
Writes OUT/clips.npz (lossless), OUT/meta.json, OUT/mp4/*.mp4 and OUT/grid.png. Clip i depends on the
seed and on i only, whatever the number of ranks (torchrun) and the batch size; pixels of batches of one may differ from
those of larger ones by a last bit. Resumable.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nbp.system.command import at_least, positive, run_command
from nbp.system.distributed import default_device
from nbp.workflows.generating import generate


def main(arguments: Sequence[str] | None = None) -> None:
    generate(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.generate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", nargs="?", help="folder or model hub id of a generator with its tokenizer")
    add("--generator", help="native model folder, official checkpoint or hub id, where there is no MODEL")
    add("--tokenizer", help="native model folder, official file or hub id, where there is no MODEL")
    add("--out", required=True, help="folder for the clips")
    add("--num-clips", type=at_least(1), default=16, help="with --data more than there are continue each again")
    add("--labels", nargs="+", help="classes to cycle through, ids or names that the model knows (default: all)")
    add("--texts", nargs="+", help="prompts to cycle through, for text-conditioned models")
    add("--classes", help="classes.txt of a data set: its names, as words, are the prompts of text-conditioned models "
        "(default: those that the model knows); a model of labels has all of its own in turn, which must be as many")
    add("--text-tokenizer", help="Hugging Face tokenizer folder, for text-conditioned models; default: the model's")
    add("--data", help="data config whose validation clips are continued")
    add("--clips-per-video", type=at_least(1), help="with --data: clips of each file, evenly spaced")
    add("--prefix-frames", type=at_least(1), help="with --data: frames that are given, 1 + 4k (default: 5)")
    add("--num-frames", type=at_least(2), help="length of a clip, also beyond what the model was trained on")
    add("--stream", action="store_true", help="write OUT/mp4 only, while it is drawn: memory for a batch of windows")
    add("--profile", action="store_true", help="trace the first batch into OUT/profile and print its top")
    add("--unconditional", action="store_true", help="leave the label or text out")
    add("--seed", type=int, default=0)
    add("--batch-size", type=at_least(1), default=8)
    sampling = parser.add_argument_group("sampling", "default: what the model recommends, or 1.0, 16000, 0.9 and none")
    for name, kind, text in (("--temperature", positive, None), ("--top-k", int, "0: off"),
                             ("--top-p", float, "1: off"),
                             ("--cfg-scale", float, "classifier-free guidance; 1: none")):
        sampling.add_argument(name, type=kind, help=text)
    sampling.add_argument("--lookahead", type=at_least(1), help="steps drawn in one pass, which gives the same "
                          "clips in fewer passes; in bf16 it changes them a little, as the batch size does. "
                          "Default: as many as cost little more than one")
    sampling.add_argument("--greedy", action=argparse.BooleanOptionalAction)
    add("--precision", choices=("fp32", "bf16", "int8"), default="fp32", help="of the generator, and "
        "on CPUs that multiply bf16 of the decoder; bf16 is up to 2.7 times as fast on a GPU, int8 up to 2 times on a "
        "CPU; a clip then depends a little on its batch")
    add("--fps", type=positive, help="frame rate of the mp4 files; default: the model's, or 8")
    add("--device", default=default_device(), help="default: a GPU for each rank, or cpu")
    options = parser.parse_args(arguments)
    model = vars(options).pop("model")
    options.generator, options.tokenizer = options.generator or model, options.tokenizer or model
    if not (options.generator and options.tokenizer):
        parser.error("give MODEL, or --generator and --tokenizer")
    for name, default in (("prefix_frames", 5), ("clips_per_video", 1)):
        if options.data is None and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} belongs to --data, whose clips are continued; add --data CONFIG")
        setattr(options, name, getattr(options, name) or default)
    if options.stream and options.profile:
        parser.error("--profile traces a batch of whole clips, which --stream does not make; leave one out")
    if Path(options.out).is_file():
        parser.error(f"--out {options.out} is a file")
    return options


if __name__ == "__main__":
    run_command(main)
