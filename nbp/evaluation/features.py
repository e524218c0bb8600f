"""From sets of clips to feature matrices: clip sets, and extraction that is cached and resumable.

A set is extracted in chunks of 32 clips; with a cache folder each chunk becomes one file under a key made of
the set's content, the weights and the protocol. Ranks take turns with chunks, an interrupted run goes on
with the missing ones, and a real set is extracted once for any number of fake sets.
Legend: N clips, T frames, H W pixels, D features.
"""

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from nbp.evaluation.networks import FeatureNetwork, network_features
from nbp.evaluation.protocols import Protocol
from nbp.system.files import atomic_path, write_json
from nbp.system.progress import progress

CHUNK = 32
FEATURES_VERSION = 2  # raise it when the same inputs give other features
T = TypeVar("T")


@dataclass(frozen=True)
class Extraction:
    """How features are extracted; none of it changes them, but for the batch size of a GPU, by rounding."""

    cache_dir: str | Path | None = None     # for the chunks, shared by all ranks; None keeps nothing
    batch_size: int = 8                     # clips per forward pass of a GPU; on the CPU clips prepared at once
    num_workers: int = 0                    # decoding processes; 0: one thread, which decodes while the network runs
    rank: int = 0
    world: int = 1
    # What waits for all ranks when there are several, and raises ValueError at all if its text says what went wrong.
    barrier: Callable[[str], None] | None = None


ALONE = Extraction()  # in one process, and nothing is kept


class Clips(Dataset[Tensor]):
    """A set of clips.

    Args:
        read: function(number) -> frames (T,H,W,3), uint8 or float in [0,1].
        fingerprint: hex digest of the content; `content` of what the clips are cut from, however they are cut.
        labels: class of each clip (-1 without one), or None.
        forkable: False where `read` runs a model, which worker processes can't share.
        rates: function() -> list of the frame rates of the clips, ascending; None where they have none.
        paths: the video that each clip is, or is made from; None where that is not known.
    """

    def __init__(self, name: str, count: int, read: Callable[[int], np.ndarray], fingerprint: str,
                 labels: Sequence[int] | np.ndarray | None = None, forkable: bool = True, content: str | None = None,
                 rates: Callable[[], list[float] | None] = lambda: None,
                 paths: Sequence[str] | np.ndarray | None = None) -> None:
        if count < 1:
            raise ValueError(f"{name} holds no clips")
        if labels is not None and len(labels) != count:
            raise ValueError(f"{name} has {count} clips and {len(labels)} labels")
        self.name, self.count, self.read, self.fingerprint, self.forkable = name, count, read, fingerprint, forkable
        self.content, self.rates = content or fingerprint, rates
        # An array of another kind under this name is not the project's.
        self.paths = list(map(str, paths)) if paths is not None and np.shape(paths) == (count,) else None
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None and not (self.labels.ndim == 1 and np.issubdtype(self.labels.dtype, np.integer)):
            raise ValueError(f"labels of {name} are {self.labels.dtype} {self.labels.shape}; accepted: integers (N,), "
                             "-1 for clips without a class")

    @classmethod
    def from_array(cls, name: str, frames: np.ndarray, labels: Sequence[int] | np.ndarray | None = None,
                   paths: Sequence[str] | np.ndarray | None = None) -> "Clips":
        """Clips of an array (N,T,H,W,3), uint8 or float in [0,1]. ValueError: wrong shape or dtype, or uint8 values
        that look like [0,1]."""
        frames = np.asarray(frames)
        if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(f"{name} has shape {frames.shape}; accepted: (N,T,H,W,3)")
        if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
            raise ValueError(f"{name} is {frames.dtype}; accepted: uint8, or float in [0,1]")
        digest, largest = hashlib.sha256(f"{frames.dtype}{frames.shape}".encode()), 0
        for clip in frames:   # one at a time: the array may lie in a file
            digest.update(np.ascontiguousarray(clip).data)
            largest = max(largest, clip.max())
        if frames.dtype == np.uint8 and largest <= 1:
            raise ValueError(f"{name} is uint8 with values 0 and 1 only; multiply videos in [0,1] by 255 first")
        return cls(name, len(frames), frames.__getitem__, digest.hexdigest(), labels, paths=paths)

    def subset(self, numbers: Iterable[int]) -> "Clips":
        """The clips with these numbers, in this order."""
        numbers = [int(number) for number in numbers]
        digest = hashlib.sha256(f"{self.fingerprint} {numbers}".encode()).hexdigest()
        return Clips(f"{self.name}, {len(numbers)} clips", len(numbers), lambda number: self.read(numbers[number]),
                     digest, None if self.labels is None else self.labels[numbers], self.forkable, self.content,
                     self.rates, None if self.paths is None else [self.paths[number] for number in numbers])

    def window(self, first: int, size: int) -> "Clips":
        """`size` frames of each clip, from `first` on. ValueError, when it is read: a clip that is too short."""
        def read(number: int) -> np.ndarray:
            frames = self.read(number)[first:first + size]
            if len(frames) < size:
                raise ValueError(f"{self.name}, clip {number} ends before frame {first + size}")
            return frames

        digest = hashlib.sha256(f"{self.fingerprint} frames {first} {size}".encode()).hexdigest()
        return Clips(f"{self.name}, frames {first} to {first + size - 1}", self.count, read, digest, self.labels,
                     self.forkable, self.content, self.rates, self.paths)

    def pixels(self, number: int) -> np.ndarray:
        """A clip as uint8 (T,H,W,3), rounded where it is float."""
        frames = self[number].numpy()
        return frames if frames.dtype == np.uint8 else (frames * 255).round().clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        frames = np.array(self.read(number))   # a copy: files mapped into memory are read-only, tensors are not
        if frames.ndim != 4:
            raise ValueError(f"{self.name}, clip {number} has shape {frames.shape}; accepted: (T,H,W,3)")
        return torch.from_numpy(frames)


def extract_features(clips: Clips, network: FeatureNetwork, protocol: Protocol, how: Extraction = ALONE) -> np.ndarray:
    """Features of a set under a protocol, float32 (N,D) in the order of the set. ValueError: clips of unequal or too
    small size, wrong type or range, NaN features, here or at another rank, or several ranks without a cache folder."""
    if network.name != protocol.network:
        raise ValueError(f"protocol {protocol.name} needs network {protocol.network}, got {network.name}")
    if how.world > 1 and (how.cache_dir is None or how.barrier is None):
        raise ValueError("several ranks exchange features through files: give cache_dir and barrier")
    folder = None if how.cache_dir is None else _cache_folder(how.cache_dir, clips, network, protocol)
    starts = range(0, len(clips), CHUNK)
    chunks = _read_chunks(folder, starts, len(clips))
    numbers = [number for place, start in enumerate(starts) if start not in chunks and place % how.world == how.rank
               for number in range(start, min(start + CHUNK, len(clips)))]
    rows: Iterable[tuple[int, np.ndarray]] = _rows(clips, numbers, network, protocol, how)
    rows = progress(rows, len(numbers), f"features of {clips.name}", "clips") if numbers else ()
    problem = ""
    try:
        chunks |= _written(folder, rows, len(clips))
    except ValueError as error:
        if how.world == 1:
            raise
        problem = str(error)
    if how.world > 1 and how.barrier is not None:
        how.barrier(problem)
        chunks = _read_chunks(folder, starts, len(clips))
    return np.concatenate([chunks[start] for start in starts])  # (N, D)


def _written(folder: Path | None, rows: Iterable[tuple[int, np.ndarray]], total: int) -> dict[int, np.ndarray]:
    """{start: chunk} of (number, features) of whole chunks of a set of `total` clips, each written once it is there."""
    chunks: dict[int, np.ndarray] = {}
    buffer: list[np.ndarray] = []
    for number, row in rows:
        buffer.append(row)
        if (number + 1) % CHUNK == 0 or number + 1 == total:
            start = number // CHUNK * CHUNK
            chunks[start], buffer = np.stack(buffer), []
            if folder is not None:
                with atomic_path(folder / f"{start:08d}.npy") as temporary:
                    np.save(temporary, chunks[start])
    return chunks


def _rows(clips: Clips, numbers: list[int], network: FeatureNetwork, protocol: Protocol,
          how: Extraction) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, features (D,)) of the clips asked for."""
    num_workers = how.num_workers if clips.forkable else 0
    # Forked workers: sets read through closures, which can't be pickled.
    loader: DataLoader[Tensor] = DataLoader(Subset(clips, numbers), how.batch_size, num_workers=num_workers,
                                            collate_fn=list, multiprocessing_context="fork" if num_workers else None,
                                            generator=torch.Generator())      # leaves the caller's random numbers alone
    expected = seen_shape(clips, protocol)
    done = 0
    for batch in loader if num_workers else _ahead(loader):
        here = numbers[done:done + len(batch)]
        done += len(batch)
        try:
            features = network_features(network, _alike(batch, expected, protocol), protocol)
        except ValueError as error:
            raise ValueError(f"{clips.name}, clips {here[0]} to {here[-1]}: {error}") from error
        yield from zip(here, features.numpy())


def _ahead(iterable: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield from an iterable that a thread runs up to `depth` items ahead."""
    iterator = iter(iterable)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(list, islice(iterator, 1)) for _ in range(depth))
        try:
            while item := waiting.popleft().result():
                waiting.append(thread.submit(list, islice(iterator, 1)))
                yield from item
        finally:
            for future in waiting:
                future.cancel()


def some_clips(clips: Clips) -> list[Tensor]:
    """The first, the middle and the last clip."""
    return [clips[number] for number in sorted({0, len(clips) // 2, len(clips) - 1})]


def seen_shape(clips: Clips, protocol: Protocol) -> tuple[int, ...]:
    """(T,H,W,3) of the first clip as far as the protocol looks at it. ValueError: the first, middle and last clip are
    uint8 with values 0 and 1, so meant as [0,1]."""
    samples = some_clips(clips)
    if samples[0].dtype == torch.uint8 and max(int(clip.max()) for clip in samples) == 1:
        raise ValueError(f"{clips.name} is uint8 with values 0 and 1 only; multiply videos in [0,1] by 255 first")
    return tuple(samples[0][:protocol.num_frames].shape)


def _alike(batch: list[Tensor], expected: tuple[int, ...], protocol: Protocol) -> list[Tensor]:
    """Clips (T,H,W,3) of a set as (B,T',H,W,3), each by itself where they have several sizes. ValueError: other
    lengths, or sizes unlike the first's, `expected`, that the protocol does not bring to one resolution."""
    batch = [clip[:protocol.num_frames] for clip in batch]
    shapes = {tuple(clip.shape) for clip in batch}
    others = sorted(shape for shape in shapes if shape[0] != expected[0] or
                    (protocol.resolution is None and shape != expected))
    if others:
        advice = "all must be of one length" if others[0][0] != expected[0] else (
            "--set resolution=N brings all to N pixels first")
        raise ValueError(f"clips differ in size: {', '.join(map(str, others))}, the first of the set {expected}; "
                         f"{advice}")
    return [torch.stack(batch)] if len(shapes) == 1 else [clip[None] for clip in batch]


def _cache_folder(cache_dir: str | Path, clips: Clips, network: FeatureNetwork, protocol: Protocol) -> Path:
    """Folder of the chunks; made of everything that features depend on."""
    key = {"set": clips.fingerprint, "clips": len(clips), "weights": network.weights_sha256, "chunk": CHUNK,
           "version": FEATURES_VERSION} | protocol.features_key()
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    if not (folder / "key.json").is_file():
        write_json(folder / "key.json", key | {"name": clips.name})
    return folder


def _read_chunks(folder: Path | None, starts: Iterable[int], total: int) -> dict[int, np.ndarray]:
    """{start: features} of the chunks of a set of `total` clips that are there and not damaged."""
    found: dict[int, np.ndarray] = {}
    if folder is None:
        return found
    for start in starts:
        path, rows = folder / f"{start:08d}.npy", min(CHUNK, total - start)
        if not path.is_file():
            continue
        try:
            features = np.load(path, allow_pickle=False)
            if features.ndim == 2 and len(features) == rows and np.isfinite(features).all():
                found[start] = features
                continue
            problem = f"holds {features.dtype} {features.shape}, expected are {rows} rows of finite numbers"
        except (ValueError, EOFError, OSError) as error:
            problem = f"cannot be read: {error}"
        warnings.warn(f"{path} {problem}; its clips are extracted again")
    return found
