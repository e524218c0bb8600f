"""Open what --real and --fake name: a clip set, arrays, video files, picture sequences, a list or a data config.

Video files and lists give the middle `num_frames` frames of each file at its own rate; a data config
decides frames, rate, crop and size itself.
Legend: N clips, T frames, H W pixels.
"""

import hashlib
from pathlib import Path

import numpy as np

from nbp import clipset
from nbp.evaluation.features import Clips
from nbp.files import sha256

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def open_clips(source, num_frames=None, split="val"):
    """A set of clips.

    Args:
        source: folder with clips.npz; .npz or .npy file; folder of videos or of folders of pictures; .txt
            annotation list; .yaml data config.
        num_frames: frames taken from the middle of video files; None: all.
        split: "train" or "val", for a data config.

    Returns:
        `nbp.evaluation.features.Clips`.

    Raises:
        ValueError: nothing there that can be read as clips; the message names the source.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source} does not exist")
    if path.is_dir() and (path / "clips.npz").is_file():
        arrays = clipset.load(path)
        return Clips.from_array(str(source), arrays["video"], arrays["label"])
    if path.is_dir():
        return _folder(path, num_frames)
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".npy":
        return Clips.from_array(str(source), np.load(path, mmap_mode="r", allow_pickle=False))
    if path.suffix in (".yaml", ".yml"):
        return _data_config(path, split)
    if path.suffix == ".txt":
        from nbp.data.annotations import read_annotations

        return _files(str(source), [path.parent / name for name, _ in read_annotations(path)], num_frames)
    raise ValueError(f"{source}: accepted are a folder, .npz, .npy, .txt (annotation list) or .yaml (data config)")


def _npz(path):
    arrays = clipset.read_arrays(path)
    name = "video" if "video" in arrays else next(iter(arrays), None)
    if name is None or (name != "video" and len(arrays) > 1):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; "
                         "expected an array `video`, or one alone")
    return Clips.from_array(str(path), arrays[name], arrays.get("label"))


def _folder(folder, num_frames):
    videos = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if videos:
        return _files(str(folder), videos, num_frames)
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise ValueError(f"{folder} holds no clips.npz, no videos ({', '.join(VIDEO_SUFFIXES)}) and no pictures")
    sequences = {}
    for file in pictures:
        sequences.setdefault(file.parent, []).append(file)
    sequences = list(sequences.values())
    return Clips(str(folder), len(sequences), lambda number: _read_pictures(sequences[number], num_frames),
                 _content(pictures))


def _files(name, paths, num_frames):
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{name}: {len(missing)} of {len(paths)} files do not exist, the first {missing[0]}")
    return Clips(name, len(paths), lambda number: _read_video(paths[number], num_frames),
                 _content(paths, f"middle {num_frames}"))


def _data_config(path, split):
    from nbp.config import DataConfig, load_config, to_dict
    from nbp.data.clips import video_to_frames
    from nbp.data.dataset import VideoDataset

    dataset = VideoDataset(load_config(DataConfig, path), split, train=False)
    ids = {name: number for number, name in enumerate(dataset.classes)}
    files = [Path(dataset.data.root) / name for name, _ in dataset.rows]
    return Clips(f"{path}:{split}", len(dataset), lambda number: video_to_frames(dataset[number]["video"]),
                 _content(files, str(sorted(to_dict(dataset.data).items()))),
                 [ids.get(label, -1) for _, label in dataset.rows])


def _content(paths, *settings):
    """Digest of files in order, and of what decides how they are read."""
    digest = hashlib.sha256(" ".join(settings).encode())
    for path in paths:
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def _read_video(path, num_frames):
    from nbp.data.video_io import VideoError, probe, read_frames

    total = probe(path).num_frames
    count = total if num_frames is None else num_frames
    if count > total:
        raise VideoError(f"has {total} frames, {count} are needed", path)
    start = (total - count) // 2
    return read_frames(path, range(start, start + count))


def _read_pictures(paths, num_frames):
    from PIL import Image

    if num_frames is not None and len(paths) < num_frames:
        raise ValueError(f"{paths[0].parent} holds {len(paths)} pictures, {num_frames} are needed")
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[:num_frames]])
