"""Open what --real and --fake name: a clip set, arrays, video files, picture sequences, a list, a data config or
a token cache.

Video files and lists are cut as a `Cut` says; a data config decides length, crop and size itself and the `Cut`
rate and places. Arrays, picture sequences and tokens are clips already.
Legend: N clips, T frames, H W pixels.
"""

import dataclasses
import hashlib
import math
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from nbp.data import clip_set
from nbp.evaluation.features import Clips
from nbp.system.files import sha256
from nbp.system.progress import progress

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")
MAX_PER_VIDEO = 4  # more random clips of one video would repeat its frames instead of adding to the set
MAX_PROBED = 100  # files that are asked for their frame rate
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow cuts deeper ones off at 255


@dataclass(frozen=True)
class Cut:
    """Which clips of a video file make up a set; `of` reads it from a protocol."""

    num_frames: Optional[int] = None     # None: the whole file
    fps: Optional[float] = None          # None: the file's own rate
    place: str = "centre"                # centre | spaced | random | first; whole files begin with their first frame
    clips_per_video: Optional[int] = 1   # None: as many as num_clips needs, up to MAX_PER_VIDEO
    num_clips: Optional[int] = None
    seed: int = 0                        # of random places

    @classmethod
    def of(cls, protocol, real, seed=0):
        """How the real or a fake set of a `Protocol` is cut; a fake file is one clip, as it was generated."""
        if not real:
            return cls(protocol.num_frames, place="first")
        return cls(protocol.num_frames, protocol.fps, protocol.real_clips, protocol.clips_per_video, protocol.num_real,
                   seed)

    def per_video(self, num_files):
        """Clips of each of `num_files` files."""
        return self.clips_per_video or min(MAX_PER_VIDEO, max(1, math.ceil((self.num_clips or 1) / num_files)))


def open_clips(source, cut=Cut(), split="val", tokenizer=None):
    """A set of clips.

    Args:
        source: folder with clips.npz; .npz or .npy file; folder of videos or of folders of pictures; .txt
            annotation list; .yaml data config; token cache.
        cut: Cut, for video files.
        split: "train" or "val", for a data config.
        tokenizer: `Tokenizer` in eval mode, for a token cache.

    Returns:
        `nbp.evaluation.features.Clips`.

    Raises:
        ValueError: nothing there that can be read as clips; the message names the source.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source} does not exist")
    if path.is_dir() and (path / "clips.npz").is_file():
        arrays = clip_set.load(path, verify=True)
        return Clips.from_array(str(source), arrays["video"], arrays["label"])
    if path.is_dir():
        return _tokens(path, tokenizer) if any(path.glob("tokens-*.safetensors")) else _folder(path, cut)
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".npy":
        return Clips.from_array(str(source), _npy(path))
    if path.suffix in (".yaml", ".yml"):
        return _data_config(path, split, cut)
    if path.suffix == ".txt":
        from nbp.data.annotations import read_annotations

        return _files(str(source), [path.parent / name for name, _ in read_annotations(path)], cut)
    raise ValueError(f"{source}: accepted are a folder, .npz, .npy, .txt (annotation list) or .yaml (data config)")


def _npy(path):
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npy array: {error}") from error


def _npz(path):
    arrays = clip_set.read_arrays(path, verify=True)
    name = "video" if "video" in arrays else next(iter(arrays), None)
    if name is None or (name != "video" and len(arrays) > 1):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; "
                         "expected an array `video`, or one alone")
    return Clips.from_array(str(path), arrays[name], arrays.get("label"))


def _folder(folder, cut):
    videos = _files_below(folder, VIDEO_SUFFIXES)
    pictures = _files_below(folder, PICTURE_SUFFIXES)
    if videos and len(pictures) > len(videos):   # fewer are previews
        raise ValueError(f"{folder} holds {len(videos)} videos ({videos[0].relative_to(folder)}) and {len(pictures)} "
                         f"pictures ({pictures[0].relative_to(folder)}); which are the clips? Keep one kind")
    if videos:
        return _files(str(folder), videos, cut)
    if not pictures:
        raise ValueError(f"{folder} holds no clips.npz, no tokens, no videos ({', '.join(VIDEO_SUFFIXES)}) "
                         "and no pictures")
    sequences = {}
    for file in pictures:
        sequences.setdefault(file.parent, []).append(file)
    sequences, digests = list(sequences.values()), _digests(pictures)
    return Clips(str(folder), len(sequences), lambda number: _read_pictures(sequences[number], cut.num_frames),
                 _fingerprint(digests), content=_content(digests))


def _files_below(folder, suffixes):
    """Files with these suffixes, with 2 before 10 in names."""
    def order(path):
        parts = path.relative_to(folder).parts
        # Splitting at numbers gives text and numbers in turns, so that like is compared with like.
        return [[int(piece) if number % 2 else piece for number, piece in enumerate(re.split(r"(\d+)", part))]
                for part in parts], parts

    return sorted((path for path in folder.rglob("*") if path.suffix.lower() in suffixes), key=order)


def _files(name, paths, cut):
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{name}: {len(missing)} of {len(paths)} files do not exist, the first {missing[0]}")
    each = 1 if cut.num_frames is None else cut.per_video(len(paths))
    how = dataclasses.replace(cut, num_clips=None, clips_per_video=each, seed=cut.seed * (cut.place == "random"))
    digests = _digests(paths)
    return Clips(name, len(paths) * each, lambda number: _read_video(paths[number // each], cut, number, each),
                 _fingerprint(digests, str(how)), content=_content(digests), rates=partial(_rates, paths, cut.fps))


def _read_video(path, cut, number, each):
    """Frames of clip `number` of a set with `each` clips a file."""
    from nbp.data.clips import clip_offsets, num_starts, spaced_starts
    from nbp.data.video_io import VideoError, probe, read_frames

    info = probe(path)
    num_frames = cut.num_frames
    if num_frames is None:
        num_frames = max(1, math.ceil(info.duration_s * (cut.fps or info.fps) - 1e-4))
    offsets = clip_offsets(num_frames, info.fps, cut.fps)
    count = num_starts(info.num_frames, offsets)
    if count == 0:
        rate = "" if cut.fps is None else f" for {cut.num_frames} at {cut.fps:g} fps (the file has {info.fps:g})"
        raise VideoError(f"has {info.num_frames} frames, {offsets[-1] + 1} are needed{rate}", path)
    if cut.place == "first" or cut.num_frames is None:
        start = 0
    elif cut.place == "random":
        start = int(np.random.default_rng([cut.seed, number]).integers(count))
    else:
        start = spaced_starts(count, each)[number % each]
    return read_frames(path, [start + offset for offset in offsets], strict=True)


def _read_pictures(paths, num_frames):
    if num_frames is not None and len(paths) < num_frames:
        raise ValueError(f"{paths[0].parent} holds {len(paths)} pictures, {num_frames} are needed")
    pictures = [_read_picture(path) for path in paths[:num_frames]]
    if len(shapes := sorted({picture.shape[:2] for picture in pictures})) > 1:
        raise ValueError(f"{paths[0].parent} holds pictures of several sizes: {', '.join(map(str, shapes))}")
    return np.stack(pictures)


def _read_picture(path):
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in PICTURE_MODES:
                raise ValueError(f"{path} is a picture of mode {image.mode}; accepted: 8 bit, that is "
                                 f"{', '.join(PICTURE_MODES)}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:   # Pillow's word for a broken PNG
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _data_config(path, split, cut):
    from nbp.config import DataConfig, load_config, to_dict
    from nbp.data.clips import video_to_frames
    from nbp.data.dataset import VideoDataset, read_annotations

    data, random = load_config(DataConfig, path), cut.place == "random"
    # A score is stated for the whole list, unmirrored, at the protocol's rate.
    data = dataclasses.replace(data, max_bad_files=0, flip=False, fps=cut.fps or data.fps)
    num_files = len(read_annotations(Path(data.root) / (data.train_list if split == "train" else data.val_list)))
    dataset = VideoDataset(data, split, train=random, clips_per_video=cut.per_video(num_files), strict=True)
    ids = {name: number for number, name in enumerate(dataset.classes)}
    files = [Path(data.root) / name for name, _ in dataset.rows]
    labels = [ids.get(label, -1) for _, label in dataset.rows for _ in range(dataset.clips_per_video)]
    how = f"{sorted(to_dict(data).items())} {dataset.clips_per_video} {cut.place} {cut.seed if random else ''}"

    def read(number):
        key = (number, data.num_frames, cut.seed * len(dataset) + number) if random else number
        return video_to_frames(dataset[key]["video"])

    digests = _digests(files)
    return Clips(f"{path}:{split}", len(dataset), read, _fingerprint(digests, how), labels, content=_content(digests),
                 rates=partial(_rates, files, data.fps))


def _tokens(folder, tokenizer):
    """Clips as a tokenizer decodes them: float in [0,1], so that the protocol decides about 8 bit."""
    import torch

    from nbp.data.tokens import TokenDataset
    from nbp.hub.models import model_hash

    if tokenizer is None:
        raise ValueError(f"{folder} is a token cache; --tokenizer names the model that decodes it")
    tokens = TokenDataset(folder, expect_tokenizer_hash=model_hash(tokenizer))
    device = next(tokenizer.parameters()).device

    @torch.inference_mode()
    def read(number):
        video = tokenizer.decode_from_code_indices(tokens[number]["indices"][None].to(device))
        return video[0].float().clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()

    digests = _digests(sorted(folder.glob("*.safetensors")))
    return Clips(str(folder), len(tokens), read, _fingerprint(digests, model_hash(tokenizer)), tokens.labels,
                 forkable=False, content=_content(digests))


def _rates(paths, fps):
    """The frame rate that clips are cut at, or where it is the files' own, those of up to MAX_PROBED of them.

    Warns:
        UserWarning: one of these has fewer frames a second than it is cut at.
    """
    from nbp.data.video_io import probe

    own = {path: round(probe(path).fps, 3) for path in paths[::-(-len(paths) // MAX_PROBED)]}
    if fps is None:
        return sorted(set(own.values()))
    if slow := [path for path in own if own[path] < fps - 1e-3]:
        warnings.warn(f"{slow[0]} has {own[slow[0]]:g} fps and is read at {fps:g}: frames are repeated "
                      f"({len(slow)} of {len(own)} files looked at)")
    return [float(fps)]


def _digests(paths):
    """Digest of each file."""
    return [sha256(path) for path in
            (progress(paths, len(paths), "hash files", "files") if len(paths) > 1000 else paths)]


def _fingerprint(digests, *settings):
    """Digest of files in order, and of what decides how they are read."""
    return hashlib.sha256("".join([" ".join(settings), *digests]).encode()).hexdigest()


def _content(digests):
    """Digest of files however they are ordered, repeated, listed and read."""
    return hashlib.sha256("".join(sorted(set(digests))).encode()).hexdigest()
