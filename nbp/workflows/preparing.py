"""From videos on disk to lists, a data config and what to run next; `nbp.prepare` is the command around it."""

import argparse
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from nbp.config import DataConfig, GeneratorConfig, save_config
from nbp.config.loading import text_field
from nbp.data.annotations import count_per_class, folder_of, read_annotations
from nbp.data.classes import read_classes
from nbp.data.integrity import BAD_FILES, read_bad_files, verify
from nbp.data.sources import folder, k600, procgen, ucf101
from nbp.data.video_io import probe
from nbp.generator.conditions import train_text_tokenizer
from nbp.system.files import check_writable

MAX_PROBED = 100  # files that are asked whether they are interlaced


def prepare(options: argparse.Namespace) -> None:
    """Make or check a data set and write its lists, by the command's options."""
    if options.source == "text":
        return prepare_text(options.root, options.out, options.vocabulary)
    motion: dict[str, dict[str, float]] = {}
    out = getattr(options, "out", None) or options.root   # procgen renders into its root
    if Path(options.root).is_dir():
        try:        # before the videos are looked at
            check_writable(out, "")
        except ValueError as error:
            raise ValueError(f"{error}; --out FOLDER writes the lists elsewhere") from error
    elif options.source != "procgen":
        raise ValueError(f"--root {options.root} is not a folder; it is where the videos of {options.source} lie")
    checks_only = options.verify and options.source != "procgen" and has_lists(out)
    config = folder_config(options, out) if options.source == "folder" else None
    if checks_only:
        print(f"--verify leaves the lists in {out} as they are")
    elif options.source == "procgen":
        motion = procgen.prepare(options.root, options.train_clips, options.val_clips, options.seed,
                                 options.num_threads)
    elif options.source == "ucf101":
        ucf101.prepare(options.root, options.split, excluded(options), out)
    elif options.source == "k600":
        k600.prepare(options.root, excluded(options), out)
    else:
        num_classes = folder.prepare(options.root, options.val_share, excluded(options), out)
    print(summary(out, motion))
    if options.verify:
        verify_files(options.root, out, options.num_workers)
    if checks_only:
        return
    if config is not None:
        print(folder_commands(config, out, num_classes))
    elif Path(out) != Path(options.root):
        fields = shlex.join([text_field("data.root", options.root), *list_fields(out)])
        print(f"for nbp.train: {fields}\nfor --data: these in a copy of configs/data/{options.source}.yaml, without "
              "`data.`")


def has_lists(out: str | Path) -> bool:
    """Whether both lists are there, made by an earlier call or by hand."""
    return all((Path(out) / f"{split}.txt").is_file() for split in ("train", "val"))


def list_fields(out: str | Path) -> list[str]:
    """Fields of a data config whose lists are not in its root."""
    folder = os.path.abspath(out)
    return [text_field("data.train_list", f"{folder}/train.txt"), text_field("data.val_list", f"{folder}/val.txt")]


def verify_files(root: str | Path, out: str | Path, num_workers: int) -> None:
    """Decode every file, list the bad ones, and say which are interlaced."""
    count, bad = verify(root, num_workers, out)
    print(f"decoded {count} files, {len(bad)} are bad: {Path(out) / BAD_FILES}")
    rows = read_annotations(Path(out) / "train.txt", root)
    base, listed = folder_of(root, rows), [path for path, _ in rows if path not in bad]
    looked_at = listed[::math.ceil(len(listed) / MAX_PROBED) or 1]
    woven = [path for path in looked_at if probe(base / path).interlaced]
    if woven:
        print(f"{len(woven)} of {len(looked_at)} files looked at are interlaced, first {woven[0]}: each frame holds "
              "two moments woven together; `ffmpeg -i FILE -vf bwdif NEW` separates them")


def excluded(options: argparse.Namespace) -> frozenset[str]:
    """Paths that --exclude names; says how many they are."""
    if options.exclude is None:
        return frozenset()
    paths = read_bad_files(options.exclude)
    gone = sum(not (Path(options.root) / path).is_file() for path in paths)
    print(f"left out {len(paths)} files that {options.exclude} names, {gone} of which are not there")
    return paths


def folder_config(options: argparse.Namespace, out: str | Path) -> DataConfig:
    """The folder's data config. ValueError: --resolution or --fps that nothing could be trained with."""
    lists = [str(Path(out).absolute() / name) if Path(out) != Path(options.root) else name
             for name in ("train.txt", "val.txt")]
    resolution = options.resolution[0] if len(options.resolution) == 1 else list(options.resolution)
    config = DataConfig(name="folder", root=options.root, train_list=lists[0], val_list=lists[1],
                        resolution=resolution, fps=options.fps)
    config.check()
    if any(side % 8 for side in options.resolution):
        nearest = " ".join(str(max(8, 8 * round(side / 8))) for side in options.resolution)
        raise ValueError(f"--resolution {' '.join(map(str, options.resolution))} is no multiple of the tokenizer's "
                         f"stride 8; the nearest that are: {nearest}")
    return config


def folder_commands(config: DataConfig, out: str | Path, num_classes: int) -> str:
    """Write the folder's data config; returns what to run next."""
    path = Path(out) / "data.yaml"
    save_config(config, path)
    data = [text_field("data.root", config.root), *(list_fields(out) if Path(out) != Path(config.root) else ()),
            f"data.resolution={str(config.resolution).replace(' ', '')}", f"data.fps={config.fps or 'null'}"]
    height, width = (side // 8 for side in config.size)
    model = [f"model.num_condition_ids={num_classes}", f"model.grid=[5,{height},{width}]",
             f"model.block_shape=[1,1,{width}]"]
    if not num_classes:
        model += ["model.condition=none", "model.condition_len=0"]
    if (positions := (1 if num_classes else 0) + 5 * height * width) > GeneratorConfig.max_seq_len:
        model.append(f"model.max_seq_len={positions}")
    train = ["python", "-m", "nbp.train"]
    return (f"data config: {path}; next:\n  {shlex.join([*train, 'configs/tokenizer_folder.yaml', *data])}\n"
            f"  {shlex.join([*train, 'configs/generator_folder.yaml', *data, *model])}")


def prepare_text(root: str | Path, out: str | Path, vocabulary: int) -> None:
    """Train a text tokenizer on the class names of a data set and write it as a folder."""
    texts = read_classes(Path(root) / "classes.txt")
    train_text_tokenizer(texts, out, vocabulary)
    print(f"{out}: text tokenizer of {len(texts)} class names, at most {vocabulary} ids")


def summary(out: str | Path, motion: Mapping[str, Mapping[str, float]]) -> str:
    """Table of clips per class, with the mean motion (grey levels between frames 4 and 16) where it is known."""
    rows = {split: read_annotations(Path(out) / f"{split}.txt") for split in ("train", "val")}
    counts = {split: count_per_class(found) for split, found in rows.items()}
    shared = sorted({path for path, _ in rows["train"]} & {path for path, _ in rows["val"]})
    lines = [f"{'class':28s} {'train':>8s} {'val':>8s}" + ("   motion train / val" if motion else "")]
    for label in sorted(set(counts["train"]) | set(counts["val"])):
        line = f"{label or '(no label)':28s} {counts['train'].get(label, 0):8d} {counts['val'].get(label, 0):8d}"
        lines.append(line + (f"   {motion['train'][label]:12.1f} / {motion['val'][label]:.1f}" if motion else ""))
    lines.append(f"{'all':28s} {sum(counts['train'].values()):8d} {sum(counts['val'].values()):8d}")
    both = f"{len(shared)} CLIPS ARE IN BOTH, first {shared[0]}" if shared else "no clip is in both"
    return "\n".join(lines) + f"\nlists: {Path(out) / 'train.txt'}, val.txt, classes.txt; {both}"
