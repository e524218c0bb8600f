"""Open what --real and --fake name: a clip set, arrays, video files, picture sequences, a list, a data config or
a token cache.

Video files and lists are cut as a `Cut` says; a data config decides length, crop and size itself and the `Cut`
rate and places. Arrays, picture sequences and tokens are clips already.
Legend: N clips, T frames, H W pixels.
"""

import dataclasses
import hashlib
import logging
import math
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from nbp.config import DataConfig, load_config, to_dict
from nbp.data import clip_set
from nbp.data.annotations import folder_of, read_annotations
from nbp.data.clips import fit_size
from nbp.data.cut import Place, first, random_place, read_clip, spaced
from nbp.data.dataset import VideoDataset
from nbp.data.pictures import PICTURE_SUFFIXES, read_picture
from nbp.data.tokens import TokenDataset
from nbp.data.video_io import VIDEO_SUFFIXES, probe
from nbp.data.walk import find_files, split_folders
from nbp.evaluation.features import Clips
from nbp.evaluation.protocols import Protocol
from nbp.hub.models import model_hash
from nbp.system.files import sha256
from nbp.system.progress import progress
from nbp.tokenizer.model import Tokenizer

log = logging.getLogger(__name__)

MAX_PER_VIDEO = 4  # more random clips of one video would repeat its frames instead of adding to the set
MAX_PROBED = 100  # files that are asked for their frame rate


@dataclass(frozen=True)
class Cut:
    """Which clips of a video file make up a set; `of` reads it from a protocol."""

    num_frames: int | None = None     # None: the whole file
    fps: float | None = None          # None: the file's own rate
    place: str = "centre"                # centre | spaced | random | first; whole files begin with their first frame
    clips_per_video: int | None = 1   # None: as many as num_clips needs, up to MAX_PER_VIDEO
    num_clips: int | None = None
    seed: int = 0                        # of random places

    @classmethod
    def of(cls, protocol: Protocol, real: bool, seed: int = 0) -> "Cut":
        """How the real or a fake set of a `Protocol` is cut; a fake file is one clip, as it was generated."""
        if not real:
            return cls(protocol.num_frames, place="first")
        return cls(protocol.num_frames, protocol.fps, protocol.real_clips, protocol.clips_per_video, protocol.num_real,
                   seed)

    def per_video(self, num_files: int) -> int:
        """Clips of each of `num_files` files."""
        return self.clips_per_video or min(MAX_PER_VIDEO, max(1, math.ceil((self.num_clips or 1) / num_files)))


WHOLE = Cut()


def open_clips(source: str | Path, cut: Cut = WHOLE, split: str = "val", tokenizer: Tokenizer | None = None) -> Clips:
    """A set of clips. The source is a folder with clips.npz; .npz or .npy file; folder of videos, cut as `cut` says, or
    of folders of pictures; .txt annotation list; .yaml data config, of which `split` is taken; or a token cache, for
    which a tokenizer in eval mode is needed. ValueError: nothing there that can be read as clips; names the source."""
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source} does not exist")
    if path.is_dir() and (path / "clips.npz").is_file():
        arrays = clip_set.load(path, verify=True)
        return Clips.from_array(str(source), arrays["video"], arrays["label"], arrays.get("path"))
    if path.is_dir():
        return _tokens(path, tokenizer) if any(path.glob("tokens-*.safetensors")) else _folder(path, cut, split)
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".npy":
        try:
            frames = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as a .npy array: {error}") from error
        return Clips.from_array(str(source), frames)
    if path.suffix in (".yaml", ".yml"):
        return _data_config(path, split, cut)
    if path.suffix == ".txt":
        rows = read_annotations(path)
        base = folder_of(path.parent, rows)
        return _files(str(source), [base / name for name, _ in rows], cut)
    raise ValueError(f"{source}: accepted are a folder, .npz, .npy, .txt (annotation list) or .yaml (data config)")


def with_rate(protocol: Protocol, real: str | Path) -> Protocol:
    """The protocol, with the rate of the real side's data config where it has none: that of its clips, named in it."""
    if protocol.fps is not None or Path(real).suffix not in (".yaml", ".yml"):
        return protocol
    rate = load_config(DataConfig, real).fps
    return protocol if rate is None else protocol.replace(fps=rate)


def _npz(path: Path) -> Clips:
    arrays = clip_set.read_arrays(path, verify=True)
    name = "video" if "video" in arrays else next(iter(arrays), None)
    if name is None or (name != "video" and len(arrays) > 1):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; "
                         "expected an array `video`, or one alone")
    return Clips.from_array(str(path), arrays[name], arrays.get("label"), arrays.get("path"))


def _folder(folder: Path, cut: Cut, split: str) -> Clips:
    if cut.place != "first" and (splits := split_folders(folder)):
        part = splits.get(split, splits.get("test", splits["train"]))
        log.warning("%s is divided into %s; its clips are those of %s", folder, ", ".join(sorted(splits)), part.name)
        folder = part
    found = find_files(folder, VIDEO_SUFFIXES + PICTURE_SUFFIXES)
    if note := found.note():
        log.warning("%s: %s", folder, note)
    files = sorted(found.files, key=partial(_natural_order, folder))
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if videos and len(pictures) > len(videos):   # fewer are previews
        raise ValueError(f"{folder} holds {len(videos)} videos ({videos[0].relative_to(folder)}) and {len(pictures)} "
                         f"pictures ({pictures[0].relative_to(folder)}); which are the clips? Keep one kind")
    if videos:
        return _files(str(folder), videos, cut)
    if not pictures:
        raise ValueError(f"{folder} holds no clips.npz, no tokens, no videos ({', '.join(VIDEO_SUFFIXES)}) "
                         "and no pictures")
    folders: dict[Path, list[Path]] = {}
    for file in pictures:
        folders.setdefault(file.parent, []).append(file)
    sequences, digests = list(folders.values()), _digests(pictures)
    return Clips(str(folder), len(sequences), lambda number: _read_pictures(sequences[number], cut.num_frames),
                 _fingerprint(digests, str(list(map(len, sequences)))), content=_content(digests))


def _natural_order(folder: Path, path: Path) -> tuple[list[list[int | str]], tuple[str, ...]]:
    """Sort key of a file: with 2 before 10 in names."""
    parts = path.relative_to(folder).parts
    # Splitting at numbers gives text and numbers in turns, so that like is compared with like.
    pieces = [re.split(r"(\d+)", part) for part in parts]
    return [[int(piece) if number % 2 else piece for number, piece in enumerate(part)] for part in pieces], parts


def _files(name: str, paths: list[Path], cut: Cut) -> Clips:
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{name}: {len(missing)} of {len(paths)} files do not exist, the first {missing[0]}")
    each = 1 if cut.num_frames is None else cut.per_video(len(paths))
    # Only random places depend on the seed: other sets keep their cached features under any.
    how = dataclasses.replace(cut, num_clips=None, clips_per_video=each, seed=cut.seed if cut.place == "random" else 0)
    digests = _digests(paths)

    def read(number: int) -> np.ndarray:
        place, hold = _place(cut, number, each), cut.place != "first"       # a generated file is never held
        return read_clip(paths[number // each], cut.num_frames, cut.fps, place, strict=True, hold=hold)

    return Clips(name, len(paths) * each, read, _fingerprint(digests, str(how)), content=_content(digests),
                 rates=partial(_rates, paths, cut.fps))


def _place(cut: Cut, number: int, each: int) -> Place:
    """Where in its file clip `number` of a set with `each` clips a file lies."""
    if cut.place == "first":
        return first
    return random_place(cut.seed, number) if cut.place == "random" else spaced(number % each, each)


def _read_pictures(paths: list[Path], num_frames: int | None) -> np.ndarray:
    if num_frames is not None and len(paths) < num_frames:
        raise ValueError(f"{paths[0].parent} holds {len(paths)} pictures, {num_frames} are needed")
    pictures = [read_picture(path) for path in paths[:num_frames]]
    if len(shapes := sorted({picture.shape[:2] for picture in pictures})) > 1:
        raise ValueError(f"{paths[0].parent} holds pictures of several sizes: {', '.join(map(str, shapes))}")
    return np.stack(pictures)


def _data_config(path: Path, split: str, cut: Cut) -> Clips:
    # A config describes real videos whichever side it is on, so the first frames are no place of it.
    cut = dataclasses.replace(cut, place="centre" if cut.place == "first" else cut.place)
    data = load_config(DataConfig, path)
    # A score is stated for the whole list at the protocol's rate, and chance decides nothing but the place in time.
    data = dataclasses.replace(data, max_bad_files=0, flip=False, fps=cut.fps or data.fps)
    num_files = len(read_annotations(Path(data.root) / (data.train_list if split == "train" else data.val_list),
                                     data.root))
    each = cut.per_video(num_files)
    dataset = VideoDataset(data, split, train=False, clips_per_video=each, strict=True)
    files = [dataset.file(item) for item in range(0, len(dataset), each)]
    labels = [int(dataset.facts(item)["label"]) for item in range(len(dataset))]
    places = f"{cut.seed} centre crop" if cut.place == "random" else ""
    how = f"{sorted(to_dict(data).items())} {each} {cut.place} {places}"

    def read(number: int) -> np.ndarray:
        frames = read_clip(files[number // each], data.num_frames, data.fps, _place(cut, number, each), data.reader,
                           strict=True)
        return fit_size(frames, data.size, data.resize)

    digests = _digests(files)
    paths = [dataset.facts(item)["path"] for item in range(len(dataset))] if each == 1 else None
    return Clips(f"{path}:{split}", len(dataset), read, _fingerprint(digests, how), labels, content=_content(digests),
                 rates=partial(_rates, files, data.fps), paths=paths)


def _tokens(folder: Path, tokenizer: Tokenizer | None) -> Clips:
    """Clips as a tokenizer decodes them: float in [0,1], so that the protocol decides about 8 bit."""
    if tokenizer is None:
        raise ValueError(f"{folder} is a token cache; --tokenizer names the model that decodes it")
    tokens = TokenDataset(folder, expect_tokenizer_hash=model_hash(tokenizer))
    device = next(tokenizer.parameters()).device

    @torch.inference_mode()
    def read(number: int) -> np.ndarray:
        video = tokenizer.decode_from_code_indices(tokens[number]["indices"][None].to(device))
        return rearrange(video[0].float().clamp(0, 1), "c t h w -> t h w c").cpu().numpy()

    digests = _digests(sorted(folder.glob("[!.]*.safetensors")))
    return Clips(str(folder), len(tokens), read, _fingerprint(digests, model_hash(tokenizer)), tokens.labels,
                 forkable=False, content=_content(digests))


def _rates(paths: list[Path], fps: float | None) -> list[float]:
    """The frame rate that clips are cut at, or where it is the files' own, those of up to MAX_PROBED of them; warns
    where one of these has fewer frames a second than it is cut at."""
    step = math.ceil(len(paths) / MAX_PROBED)
    own = {path: round(probe(path).fps, 3) for path in paths[::step]}
    if fps is None:
        return sorted(set(own.values()))
    if slow := [path for path in own if own[path] < fps - 1e-3]:
        warnings.warn(f"{slow[0]} has {own[slow[0]]:g} fps and is read at {fps:g}: frames are repeated "
                      f"({len(slow)} of {len(own)} files looked at)")
    return [float(fps)]


def _digests(paths: list[Path]) -> list[str]:
    return [sha256(path) for path in
            (progress(paths, len(paths), "hash files", "files") if len(paths) > 1000 else paths)]


def _fingerprint(digests: list[str], *settings: str) -> str:
    """Digest of files in order, and of what decides how they are read."""
    return hashlib.sha256("".join([" ".join(settings), *digests]).encode()).hexdigest()


def _content(digests: list[str]) -> str:
    """Digest of files however they are ordered, repeated, listed and read."""
    return hashlib.sha256("".join(sorted(set(digests))).encode()).hexdigest()
