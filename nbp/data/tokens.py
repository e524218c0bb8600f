"""Token caches: clips tokenized once, read by the generator as often as it likes.

A folder with meta.json, shards (safetensors: uint16 indices, label, item; paths in their metadata) and one
part-*.json per writing process that says it is finished. Shards appear whole or not at all, so a writer that
was stopped goes on behind its last one and the result is the same as without the stop.
Legend: n samples, t h w latent grid.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from nbp.data.classes import class_text
from nbp.data.clip_set import comparable, differing
from nbp.data.remote import LocalFolder, RemoteFolder, open_folder
from nbp.data.shards import Rows, load_small, load_whole, part_path, shard_path
from nbp.system.files import atomic_path, read_json, write_json

META_FIELDS = ("grid", "num_codes", "tokenizer_hash", "data", "classes")


class TokenMeta(TypedDict):
    """What meta.json says, but for what the writer adds about itself."""

    grid: list[int]             # t, h, w
    num_codes: int
    tokenizer_hash: str
    data: dict[str, object]     # settings
    classes: list[str]          # names in id order


class TokenSample(TypedDict):
    """An item of a token cache."""

    indices: Tensor   # int64 (t, h, w)
    label: Tensor     # int64, -1 without a class
    text: str         # the class name as words
    path: str


class TokenWriter:
    """Writes one process's part of a token cache. Use as a context manager; leaving it without an error finishes it.

    Args:
        out: folder of the cache.
        meta: exactly grid [t, h, w], num_codes, tokenizer_hash, data (settings, any JSON) and
            classes (names in id order).
        rank, world: this process and the number of processes; a stopped run is resumed with as many.
        shard_size: samples per file.

    Attributes:
        next_item: the first item that is not stored yet; resume the loop from here.
        finished: True if an earlier run wrote this part to its end.

    Raises:
        ValueError: `meta` lacks a field, or the folder holds a cache with other settings; names the fields.
    """

    def __init__(self, out: str | Path, meta: TokenMeta, rank: int = 0, world: int = 1,
                 shard_size: int = 1024) -> None:
        self.out, self.rank, self.shard_size = Path(out), rank, shard_size
        _check_meta(meta)
        # Tuples become lists, as they will be when read back.
        self.meta = json.loads(json.dumps({**meta, "num_parts": world, "shard_size": shard_size}))
        self._claim()
        self._part = part_path(self.out, rank)
        self.finished = self._part.is_file()
        self._counts: list[int] = []
        self.next_item = 0
        self._stored = set[int]()
        while (path := shard_path(self.out, rank, len(self._counts))).is_file():
            items = load_small(path).item
            self._counts.append(len(items))
            self._stored.update(items.tolist())
            self.next_item = int(items[-1]) + 1
        self._pending: list[tuple[int, np.ndarray, int, str]] = []

    def _claim(self) -> None:
        path = self.out / "meta.json"
        if not path.is_file():
            write_json(path, self.meta)
            return
        found, now = _flat(comparable(read_json(path))), _flat(comparable(self.meta))
        if different := differing(found, now):
            details = [f"{name} is {_short(found.get(name))}, now {_short(now.get(name))}" for name in different]
            raise ValueError(f"{self.out} already holds tokens made with other settings: {'; '.join(details)}. "
                             "Choose another folder or remove it")

    def left_out(self, count: int) -> list[int]:
        """Items of this part, among the `count` of all, that earlier runs left out: their files were bad."""
        end = count if self.finished else self.next_item
        return [item for item in range(self.rank, end, self.meta["num_parts"]) if item not in self._stored]

    def add(self, items: Sequence[int] | np.ndarray, indices: np.ndarray, labels: Sequence[int] | np.ndarray,
            paths: Sequence[str]) -> None:
        """Append samples; a full shard goes to disk.

        Args:
            items: item numbers, ascending over all calls.
            indices: integer (n, t, h, w), codes below num_codes.
            labels: integers (n,), -1 without a class.
            paths: n strings.

        Raises:
            ValueError: another grid, codes out of range, or item numbers that do not ascend.
        """
        indices, labels, items = (np.asarray(values) for values in (indices, labels, items))
        if indices.ndim != 4 or list(indices.shape[1:]) != self.meta["grid"]:
            raise ValueError(f"indices have shape {indices.shape}, the cache holds grids of {self.meta['grid']}")
        if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= self.meta["num_codes"]:
            raise ValueError(f"indices must be integers in [0, {self.meta['num_codes']}), got {indices.dtype} in "
                             f"[{indices.min()}, {indices.max()}]")
        if not len(items) == len(indices) == len(labels) == len(paths):
            raise ValueError(f"got {len(items)} items, {len(indices)} indices, {len(labels)} labels and {len(paths)} "
                             "paths")
        for item, index, label, path in zip(items.tolist(), indices, labels.tolist(), paths):
            if self.finished or item < self.next_item:
                raise ValueError(f"item {item} is already stored in {self.out}; the next one is {self.next_item}")
            self._pending.append((item, index.astype(np.uint16), label, str(path)))
            self.next_item = item + 1
            if len(self._pending) == self.shard_size:
                self._flush()

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        items, indices, labels, paths = zip(*self._pending)
        tensors = {"indices": np.stack(indices), "label": np.array(labels, np.int64), "item": np.array(items, np.int64)}
        with atomic_path(shard_path(self.out, self.rank, len(self._counts))) as temporary:
            save_file(tensors, temporary, metadata={"paths": json.dumps(paths)})
        self._counts.append(len(items))
        self._pending = []

    def finish(self) -> None:
        """Write what is left and mark this part as complete."""
        if self._pending:
            self._flush()
        if not self.finished:
            write_json(self._part, {"samples": self._counts})
            self.finished = True

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()


class TokenDataset(torch.utils.data.Dataset):
    """A finished token cache, ordered by item number however many processes wrote it.

    Local shards are mapped into memory. Those of a URL are read whole at once, 2 bytes a token: 1 GB for K600.
    An item is a `TokenSample`.

    Args:
        folder: the cache, a path or any URL that fsspec opens.
        expect_tokenizer_hash: hash of the tokenizer that will decode; None accepts any.

    Raises:
        ValueError: no cache, an unfinished or damaged one, an empty one, or one of another tokenizer.
    """

    def __init__(self, folder: str | Path, expect_tokenizer_hash: str | None = None) -> None:
        self.folder, files = folder, open_folder(folder)
        meta = files.read("meta.json")
        if meta is None:
            raise ValueError(f"{folder} is not a token cache (it has no meta.json); `python -m nbp.tokenize` makes one")
        try:
            self.meta = json.loads(meta)
        except ValueError as error:
            raise ValueError(f"meta.json of {folder} is no JSON ({error}): not a token cache, or a page in its "
                             "place") from error
        found = self.meta["tokenizer_hash"]
        if expect_tokenizer_hash is not None and found != expect_tokenizer_hash:
            raise ValueError(f"{folder} holds tokens of another tokenizer: hash {found[:12]}, expected "
                             f"{expect_tokenizer_hash[:12]}; tokenize again with the tokenizer of this run")
        self.grid, self.num_codes = tuple(self.meta["grid"]), self.meta["num_codes"]
        self.classes = self.meta["classes"]
        self._shards = self._list_shards(files)
        if not self._shards:
            raise ValueError(f"{folder} holds no samples")
        small = [load_whole(files, path) if isinstance(files, RemoteFolder) else load_small(path)
                 for path in self._shards]
        items = np.concatenate([shard.item for shard in small])
        order = np.argsort(items)
        shards = np.repeat(np.arange(len(small)), [len(shard.item) for shard in small])
        rows = np.concatenate([np.arange(len(shard.item)) for shard in small])
        self._place = np.stack([shards, rows], 1)[order]
        self.items = items[order]
        self.labels = np.concatenate([shard.label for shard in small])[order]
        paths = [path for shard in small for path in shard.paths]
        self.paths = [paths[number] for number in order]
        self._open: dict[int, Rows] = {
            number: shard.indices for number, shard in enumerate(small) if shard.indices is not None}
        self._local = files.path is not None

    def clip_names(self) -> list[object]:
        """What tells this set of clips from another: path and number of each, in order."""
        return list(zip(self.paths, self.items.tolist()))

    def _list_shards(self, files: LocalFolder | RemoteFolder) -> list[Path]:
        """Paths of the shards, local ones or names in the folder of a URL."""
        folder, shards = files.path or Path(), []
        for rank in range(self.meta["num_parts"]):
            part = files.read(part_path(Path(), rank))
            if part is None:
                raise ValueError(f"{self.folder} is unfinished: part {rank + 1} of {self.meta['num_parts']} is "
                                 "missing; run the tokenize command again, it goes on where it stopped")
            for number in range(len(json.loads(part)["samples"])):
                shards.append(shard_path(folder, rank, number))
        return shards

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, ...]) -> TokenSample:
        """Item `key`; of a tuple (item, ...) only the first entry counts, so video samplers serve here as well."""
        number = key[0] if isinstance(key, tuple) else key
        shard, row = self._place[number].tolist()
        label = int(self.labels[number])
        return {"indices": torch.from_numpy(self._rows(shard)[row].astype(np.int64)), "label": torch.tensor(label),
                "text": class_text(self.classes[label]) if label >= 0 else "", "path": self.paths[number]}

    def _rows(self, shard: int) -> Rows:
        """Rows of a shard; a local one is mapped into memory on first use in each process."""
        if shard not in self._open:
            from safetensors import safe_open

            self._open[shard] = safe_open(self._shards[shard], framework="np").get_slice("indices")
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | ({"_open": {}} if self._local else {})


def _check_meta(meta: TokenMeta) -> None:
    if set(meta) != set(META_FIELDS):
        raise ValueError(f"token meta must have exactly {', '.join(META_FIELDS)}, got {', '.join(sorted(meta))}")
    if len(meta["grid"]) != 3:
        raise ValueError(f"grid must be (t, h, w), got {meta['grid']}")
    if not 1 <= meta["num_codes"] <= 1 << 16:
        raise ValueError(f"num_codes must be in [1, 65536] to fit uint16, got {meta['num_codes']}")


def _flat(meta: dict[str, Any]) -> dict[str, object]:
    """A meta with data's fields beside the others, as data.NAME: a message then shows the one that differs."""
    return {name: value for name, value in meta.items() if name != "data"} | {
        f"data.{name}": value for name, value in meta["data"].items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
