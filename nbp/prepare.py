"""Make or check a data set and write its annotation lists into its root.

python -m nbp.prepare procgen --root data/procgen --train-clips 2400 --val-clips 240
python -m nbp.prepare ucf101 --root data/UCF-101
python -m nbp.prepare k600 --root data/kinetics-dataset/k600 --verify      decode every file, list the bad ones
python -m nbp.prepare k600 --root data/kinetics-dataset/k600 --exclude data/kinetics-dataset/k600/bad_files.txt
python -m nbp.prepare folder --root data/videos        your own: <root>/<class>/*.mp4, or files without classes
python -m nbp.prepare text --root data/UCF-101 --out ckpt/class-words      a text tokenizer of the class names
"""

import argparse
from collections.abc import Sequence

from nbp.data.integrity import BAD_FILES
from nbp.generator.conditions import FEWEST_IDS
from nbp.system.command import at_least, positive, run_command
from nbp.workflows.preparing import prepare


def main(arguments: Sequence[str] | None = None) -> None:
    prepare(parse(arguments))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.prepare", description=__doc__.splitlines()[0])
    sources = parser.add_subparsers(dest="source", required=True)
    source = sources.add_parser("procgen", help="render 64x64 clips of twelve games")
    source.add_argument("--root", default="data/procgen")
    source.add_argument("--train-clips", type=int, default=2400)
    source.add_argument("--val-clips", type=int, default=240)
    source.add_argument("--seed", type=int, default=0)
    source.add_argument("--num-threads", type=at_least(1), default=2, help="threads that encode video")
    source = sources.add_parser("ucf101", help="<root>/<Class>/v_*.avi")
    source.add_argument("--root", default="data/UCF-101")
    source.add_argument("--split", type=int, default=1, help="official split, 1 to 3")
    source = sources.add_parser("k600", help="<root>/{train,val,test}/[class/]*.mp4")
    source.add_argument("--root", default="data/kinetics-dataset/k600")
    source = sources.add_parser("folder", help="<root>/<class>/*.mp4, or videos without classes")
    source.add_argument("--root", default="data/videos")
    source.add_argument("--val-share", type=float, default=0.1, help="share of each class kept for validation")
    source.add_argument("--resolution", type=at_least(8), nargs="+", default=[128], metavar="PIXELS",
                        help="side of square clips, or height and width, for data.yaml")
    source.add_argument("--fps", type=positive, help="frames per second of the clips (default: the files' own)")
    for name in ("ucf101", "k600", "folder"):
        add = sources.choices[name].add_argument
        add("--exclude", metavar=BAD_FILES, help="files that no list gets, as --verify writes them")
        add("--out", help="folder for the lists (default: the root, which must be writable then)")
    for source in sources.choices.values():
        source.add_argument("--verify", action="store_true", help=f"decode every file and write {BAD_FILES}; resumable")
        source.add_argument("--num-workers", type=at_least(1), default=8, help="processes of --verify")
    source = sources.add_parser("text", help="a small text tokenizer of a data set's class names")
    source.add_argument("--root", default="data/UCF-101", help="where classes.txt is")
    source.add_argument("--out", default="ckpt/class-words", help="folder of the tokenizer")
    source.add_argument("--vocabulary", type=at_least(FEWEST_IDS), default=512, help="largest number of ids")
    options = parser.parse_args(arguments)
    if getattr(options, "exclude", None) and options.verify:
        parser.error(f"--verify finds no file that --exclude leaves out, and rewrites {BAD_FILES}: run it first, alone")
    if len(getattr(options, "resolution", ())) > 2:
        parser.error(f"--resolution takes one side, or height and width, got {len(options.resolution)} numbers")
    return options


if __name__ == "__main__":
    run_command(main)
