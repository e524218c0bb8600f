"""Make or check a data set and write its annotation lists into its root.

python -m nbp.prepare procgen --root data/procgen --train-clips 2400 --val-clips 240
python -m nbp.prepare ucf101 --root data/UCF-101
python -m nbp.prepare k600 --root data/kinetics-dataset/k600
"""

import argparse
from pathlib import Path

from nbp.data.annotations import count_per_class, read_annotations
from nbp.data.sources import k600, procgen, ucf101


def main(arguments=None):
    options = parse(arguments)
    motion = {}
    if options.source == "procgen":
        motion = procgen.prepare(options.root, options.train_clips, options.val_clips, options.seed,
                                 options.num_threads)
    elif options.source == "ucf101":
        ucf101.prepare(options.root, options.split)
    else:
        k600.prepare(options.root)
    print(summary(options.root, motion))


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m nbp.prepare", description=__doc__.splitlines()[0])
    sources = parser.add_subparsers(dest="source", required=True)
    source = sources.add_parser("procgen", help="render 64x64 clips of twelve games")
    source.add_argument("--root", default="data/procgen")
    source.add_argument("--train-clips", type=int, default=2400)
    source.add_argument("--val-clips", type=int, default=240)
    source.add_argument("--seed", type=int, default=0)
    source.add_argument("--num-threads", type=int, default=2, help="threads that encode video")
    source = sources.add_parser("ucf101", help="<root>/<Class>/v_*.avi")
    source.add_argument("--root", default="data/UCF-101")
    source.add_argument("--split", type=int, default=1, help="official split, 1 to 3")
    source = sources.add_parser("k600", help="<root>/{train,val,test}/[class/]*.mp4")
    source.add_argument("--root", default="data/kinetics-dataset/k600")
    return parser.parse_args(arguments)


def summary(root, motion):
    """Table of clips per class, with the mean motion of each where it is known.

    Args:
        root: prepared data set.
        motion: {split: {label: grey levels between frames 4 and 16}}, or empty.
    """
    counts = {split: count_per_class(read_annotations(Path(root) / f"{split}.txt")) for split in ("train", "val")}
    lines = [f"{'class':28s} {'train':>8s} {'val':>8s}" + ("   motion train / val" if motion else "")]
    for label in sorted(set(counts["train"]) | set(counts["val"])):
        line = f"{label or '(no label)':28s} {counts['train'].get(label, 0):8d} {counts['val'].get(label, 0):8d}"
        lines.append(line + (f"   {motion['train'][label]:12.1f} / {motion['val'][label]:.1f}" if motion else ""))
    lines.append(f"{'all':28s} {sum(counts['train'].values()):8d} {sum(counts['val'].values()):8d}")
    return "\n".join(lines) + f"\nlists: {Path(root) / 'train.txt'}, val.txt, classes.txt; no clip is in both"


if __name__ == "__main__":
    main()
