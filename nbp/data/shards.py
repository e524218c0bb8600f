"""Shards of a token cache: where they lie and how they are read. Legend: n samples, t h w latent grid."""

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from nbp.data.remote import RemoteFolder


class Rows(Protocol):
    """Indices of a shard, uint16 (n, t, h, w): an array, or a slice of a file that is mapped into memory."""
    def __getitem__(self, row: int) -> np.ndarray: ...


class Shard(NamedTuple):
    """Arrays of a shard."""

    item: np.ndarray             # int64 (n,)
    label: np.ndarray            # int64 (n,)
    paths: list[str]
    indices: np.ndarray | None   # uint16 (n, t, h, w); None: left in the file


def load_small(path: Path) -> Shard:
    """Everything of a shard but the indices."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return Shard(file.get_tensor("item"), file.get_tensor("label"), json.loads(file.metadata()["paths"]), None)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); remove it and its part-*.json, then tokenize "
                         "again") from error


def load_whole(files: RemoteFolder, name: Path) -> Shard:
    """A shard behind a URL."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = files.read(name)
    try:
        if content is None:
            raise OSError("no such file")
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
        arrays, paths = load(content), json.loads(header["__metadata__"]["paths"])
        return Shard(arrays["item"], arrays["label"], paths, arrays["indices"])
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{name} is missing or damaged ({error}); copy the token cache again") from error


def shard_path(folder: Path, rank: int, number: int) -> Path:
    """Where a rank's shard of that number lies."""
    return folder / f"tokens-{rank:04d}-{number:05d}.safetensors"


def part_path(folder: Path, rank: int) -> Path:
    """Where a rank says that its part is finished."""
    return folder / f"part-{rank:04d}.json"
