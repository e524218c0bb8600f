"""A clip set: a folder with lossless clips, made by generate, reconstruct and baselines, read by evaluate and report.

clips.npz holds video uint8 (N,T,H,W,3), label int64 (N,), -1 without a class, path (N,) str and, where there
are tokens, indices int32 (N,t,h,w); meta.json says how it was made. `numpy.load("clips.npz")["video"]` reads it.
"""

import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from nbp.data.sheet import contact_sheet, write_picture
from nbp.data.video_io import write_video
from nbp.system.files import atomic_path, read_json, write_json

MAX_OPEN = 64  # parts that are open at a time; each of their arrays holds a file descriptor
_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Arrays = dict[str, np.ndarray]


def save(folder: str | Path, video: np.ndarray, label: Sequence[int] | np.ndarray,
         path: Sequence[str] | np.ndarray | None = None, indices: np.ndarray | None = None,
         meta: Mapping[str, object] | None = None) -> None:
    """Write a clip set, atomically.

    Args:
        video: uint8 (N, T, H, W, 3).
        label: integers (N,).
        path: N source paths, or None.
        indices: integers (N, t, h, w), or None.
        meta: JSON values.
    """
    video = np.asarray(video)
    if video.ndim != 5 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ValueError(f"video must be uint8 (N, T, H, W, 3), got {video.dtype} {video.shape}")
    arrays = {"video": video, "label": np.asarray(label, np.int64),
              "path": np.asarray(path if path is not None else [""] * len(video), dtype=np.str_)}
    if indices is not None:
        arrays["indices"] = np.asarray(indices, np.int32)
    write_arrays(Path(folder) / "clips.npz", arrays)
    write_json(Path(folder) / "meta.json", meta or {})


def load(folder: str | Path, verify: bool = False) -> Arrays:
    """Arrays of a clip set; see `read_arrays`.

    Raises:
        ValueError: no clips.npz in there, or one without `video` and `label`.
    """
    path = Path(folder) / "clips.npz"
    if not path.is_file():
        raise ValueError(f"{folder} is not a clip set: clips.npz is missing")
    arrays = read_arrays(path, verify)
    if not {"video", "label"} <= set(arrays):
        raise ValueError(f"{path} must hold video and label, found {', '.join(sorted(arrays))}")
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file, atomically; uncompressed, so that `read_arrays` can map it into memory."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub knows no names in **


def read_arrays(path: str | Path, verify: bool = False) -> Arrays:
    """All arrays of an npz file; never unpickles.

    Arrays that are stored uncompressed are mapped: only what is looked at takes memory, and a change stays in it.

    Args:
        path: npz file.
        verify: read every byte first and compare checksums, which is otherwise done for compressed arrays only.

    Raises:
        ValueError: not an npz file of plain arrays, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if verify and (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} in it is damaged")
            return {info.filename.removesuffix(".npy"): _member(path, archive, info) for info in archive.infolist()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {error}") from error


def _member(path: str | Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array: mapped into memory where it lies there as it is, else read."""
    if info.compress_type == zipfile.ZIP_STORED and (mapped := _mapped(path, info.header_offset)) is not None:
        return mapped
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def _mapped(path: str | Path, start: int) -> np.ndarray | None:
    """The first npy array behind place `start` of a file, mapped into memory; None if it can't be."""
    with open(path, "rb") as file:
        file.seek(start)
        # Behind the name of the array, which has at most 2 ** 16 bytes.
        file.seek(start + file.read(1 << 17).index(npy.MAGIC_PREFIX))
        version = npy.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"an array has version {version} of the npy format; accepted: 1.0, 2.0")
        shape, fortran_order, dtype = _NPY_HEADERS[version](file)
        if 0 in shape or file.tell() % dtype.alignment or dtype.hasobject:
            return None
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran_order else "C")


# Fields of a data config that change no clip; the list itself is told from another by its digest.
FREE = ("name", "root", "flip", "max_bad_files")


def comparable(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings without the fields of their data configs that may change while a folder is filled; where these have no
    digest of the list, the root tells it from another."""
    text = str(settings)
    free = [name for name in FREE if name != "root" or "annotations_sha256" in text]
    return {name: {key: item for key, item in value.items() if key not in free} if isinstance(value, Mapping) else value
            for name, value in settings.items()}


def differing(found: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Names of the settings that differ from those of a folder; of before it was recorded, it says nothing of its
    files."""
    return [name for name in sorted(found.keys() | now.keys()) if found.get(name) != now.get(name)
            and not (name.endswith("files_sha256") and name not in found)]


class Parts:
    """A clip set in the making: batches land in OUT/parts as they come, so that a stopped run goes on behind them.

    Args:
        folder: the clip set.
        meta: settings; a folder made with other settings is refused.

    Raises:
        ValueError: the folder holds clips made with other settings.
    """

    def __init__(self, folder: str | Path, meta: Mapping[str, object]) -> None:
        self.folder, self.parts = Path(folder), Path(folder) / "parts"
        path = self.folder / "meta.json"
        begun = any(place.exists() for place in (self.parts, self.folder / "clips.npz", self.folder / "mp4"))
        if begun and path.is_file() and (names := differing(comparable(read_json(path)), comparable(meta))):
            raise ValueError(f"{folder} holds clips made with other settings ({', '.join(names)} differ); choose "
                             "another folder or remove it")
        write_json(path, meta)

    @property
    def finished(self) -> bool:
        """Whether the set is merged."""
        return (self.folder / "clips.npz").is_file()

    def _files(self) -> list[Path]:
        """The parts that are whole: what another rank is writing has a name that begins with a dot."""
        return sorted(self.parts.glob("[!.]*.npz"))

    def done(self) -> set[int]:
        """Numbers of the clips that are stored."""
        if self.finished:
            return set(range(len(load(self.folder)["label"])))
        return {int(n) for path in self._files() for n in read_arrays(path)["number"]}

    def add(self, numbers: list[int], **arrays: np.ndarray) -> None:
        """Store a batch of clips under their numbers."""
        write_arrays(self.parts / f"{numbers[0]:07d}.npz", {"number": np.asarray(numbers), **arrays})

    def merge(self, total: int, max_missing: int = 0) -> None:
        """Join the parts into clips.npz, ordered by number, and remove them; memory does not grow with the clips.

        Args:
            total: number of clips, whose numbers are 0 to total - 1.
            max_missing: so many may be left out, if any is there.

        Raises:
            ValueError: more clips are missing.
        """
        target = self.folder / "clips.npz"
        if target.is_file():
            shutil.rmtree(self.parts, ignore_errors=True)       # of a run that was stopped just then
            return
        files = self._files()
        places: dict[int, tuple[Path, int]] = {}
        kinds: dict[str, list[np.ndarray]] = {}
        for path in files:
            arrays = read_arrays(path)
            places |= {int(number): (path, row) for row, number in enumerate(arrays.pop("number"))}
            for name, values in arrays.items():
                kinds.setdefault(name, []).append(values[:0])
        if not places or total - len(places) > max_missing:
            raise ValueError(f"{self.parts} holds {len(places)} of {total} clips" + (
                f", of which {max_missing} may be left out" if max_missing else "") + "; run the command again")
        opened = lru_cache(MAX_OPEN)(read_arrays)
        with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, empty in kinds.items():
                rows = (opened(path)[name][row] for path, row in map(places.__getitem__, sorted(places)))
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_rows(member, rows, len(places), np.concatenate(empty))
        shutil.rmtree(self.parts)


def _write_rows(file: IO[bytes], rows: Iterable[np.ndarray], count: int, like: np.ndarray) -> None:
    """Write `count` rows as one array to an npy file, one at a time; dtype and shape of a row are those of `like`."""
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(like.dtype), "fortran_order": False,
                                      "shape": (count, *like.shape[1:])})
    for row in rows:
        file.write(np.ascontiguousarray(row, like.dtype).tobytes())


def write_pictures(folder: str | Path, fps: float, columns: int = 4) -> None:
    """Write mp4/NNNNN.mp4 for every clip of a set, and grid.png of the first 48."""
    folder = Path(folder)
    video = load(folder)["video"]
    for number, clip in enumerate(video):
        write_video(folder / "mp4" / f"{number:05d}.mp4", clip, fps)
    write_picture(folder / "grid.png", contact_sheet(video[:48], columns=columns))
