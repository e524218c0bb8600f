"""Make or check a data set and write its annotation lists into its root.

python -m nbp.prepare procgen --root data/procgen --train-clips 2400 --val-clips 240
python -m nbp.prepare ucf101 --root data/UCF-101
python -m nbp.prepare k600 --root data/kinetics-dataset/k600 --verify      decode every file, list the bad ones
python -m nbp.prepare k600 --root data/kinetics-dataset/k600 --exclude data/kinetics-dataset/k600/bad_files.txt
python -m nbp.prepare folder --root data/videos        your own: <root>/<class>/*.mp4, or files without classes
python -m nbp.prepare text --root data/UCF-101 --out ckpt/class-words      a text tokenizer of the class names
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nbp.config import DataConfig, save_config
from nbp.data.annotations import count_per_class, read_annotations
from nbp.data.classes import read_classes
from nbp.data.integrity import BAD_FILES, read_bad_files, verify
from nbp.data.sources import folder, k600, procgen, ucf101
from nbp.system.command import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    motion: dict[str, dict[str, float]] = {}
    if options.source == "procgen":
        motion = procgen.prepare(options.root, options.train_clips, options.val_clips, options.seed,
                                 options.num_threads)
    elif options.source == "ucf101":
        ucf101.prepare(options.root, options.split, excluded(options))
    elif options.source == "k600":
        k600.prepare(options.root, excluded(options))
    elif options.source == "folder":
        num_classes = folder.prepare(options.root, options.val_share, excluded(options))
    else:
        return prepare_text(options.root, options.out, options.vocabulary)
    print(summary(options.root, motion))
    if options.verify:
        count, bad = verify(options.root, options.num_workers)
        print(f"decoded {count} files, {len(bad)} are bad: {Path(options.root) / BAD_FILES}")
    if options.source == "folder":
        print(folder_commands(options, num_classes))


def excluded(options: argparse.Namespace) -> frozenset[str]:
    """Paths that --exclude names; says how many they are."""
    if options.exclude is None:
        return frozenset()
    paths = read_bad_files(options.exclude)
    gone = sum(not (Path(options.root) / path).is_file() for path in paths)
    print(f"left out {len(paths)} files that {options.exclude} names, {gone} of which are not there")
    return paths


def folder_commands(options: argparse.Namespace, num_classes: int) -> str:
    """Write the folder's data config; returns what to run next."""
    path = Path(options.root) / "data.yaml"
    save_config(DataConfig(name="folder", root=options.root, train_list="train.txt", val_list="val.txt",
                           resolution=options.resolution, fps=options.fps), path)
    data = [f"data.root={options.root}", f"data.resolution={options.resolution}", f"data.fps={options.fps or 'null'}"]
    row = options.resolution // 8
    model = [f"model.num_condition_ids={num_classes}", f"model.grid=[5,{row},{row}]", f"model.block_shape=[1,1,{row}]"]
    if not num_classes:
        model += ["model.condition=none", "model.condition_len=0"]
    train = ["python", "-m", "nbp.train"]
    return (f"data config: {path}; next:\n  {shlex.join([*train, 'configs/tokenizer_folder.yaml', *data])}\n"
            f"  {shlex.join([*train, 'configs/generator_folder.yaml', *data, *model])}")


def prepare_text(root: str | Path, out: str | Path, vocabulary: int) -> None:
    """Train a text tokenizer on the class names of a data set and write it as a folder."""
    from nbp.generator.conditions import train_text_tokenizer

    texts = read_classes(Path(root) / "classes.txt")
    train_text_tokenizer(texts, out, vocabulary)
    print(f"{out}: text tokenizer of {len(texts)} class names, at most {vocabulary} ids")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
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
    source = sources.add_parser("folder", help="<root>/<class>/*.mp4, or videos without classes")
    source.add_argument("--root", default="data/videos")
    source.add_argument("--val-share", type=float, default=0.1, help="share of each class kept for validation")
    source.add_argument("--resolution", type=int, default=128, help="pixels of the square clips, for data.yaml")
    source.add_argument("--fps", type=float, help="frames per second of the clips (default: the files' own)")
    for name in ("ucf101", "k600", "folder"):
        sources.choices[name].add_argument("--exclude", metavar=BAD_FILES,
                                           help="files that no list gets, as --verify writes them")
    for source in sources.choices.values():
        source.add_argument("--verify", action="store_true", help=f"decode every file and write {BAD_FILES}; resumable")
        source.add_argument("--num-workers", type=int, default=8, help="processes of --verify")
    source = sources.add_parser("text", help="a small text tokenizer of a data set's class names")
    source.add_argument("--root", default="data/UCF-101", help="where classes.txt is")
    source.add_argument("--out", default="ckpt/class-words", help="folder of the tokenizer")
    source.add_argument("--vocabulary", type=int, default=512, help="largest number of ids")
    options = parser.parse_args(arguments)
    if getattr(options, "exclude", None) and options.verify:
        parser.error(f"--verify finds no file that --exclude leaves out, and rewrites {BAD_FILES}: run it first, alone")
    return options


def summary(root: str | Path, motion: Mapping[str, Mapping[str, float]]) -> str:
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
    run_command(main)
