"""A clip set: a folder with lossless clips, made by generate, reconstruct and baselines, read by evaluate and report.

clips.npz holds video uint8 (N,T,H,W,3), label int64 (N,), -1 without a class, path (N,) str and, where there
are tokens, indices int32 (N,t,h,w); meta.json says how it was made.
"""

import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from nbp.system.files import atomic_path, read_json, write_json

MAX_OPEN = 64  # parts that are open at a time; each of their arrays holds a file descriptor


def save(folder, video, label, path=None, indices=None, meta=None):
    """Write a clip set, atomically.

    Args:
        video: uint8 (N, T, H, W, 3).
        label: integers (N,).
        path: N source paths, or None.
        indices: integers (N, t, h, w), or None.
        meta: dict of JSON values.
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


def load(folder, verify=False):
    """Arrays of a clip set as a dict; see `read_arrays`.

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


def write_arrays(path, arrays):
    """Write an npz file, atomically; uncompressed, so that `read_arrays` can map it into memory."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


def read_arrays(path, verify=False):
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


def _member(path, archive, info):
    """One array: mapped into memory where it lies there as it is, else read."""
    with archive.open(info) as file:
        shape, fortran_order, dtype = _npy_header(file)
        header = file.tell()
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)   # lengths of name and extra field, which end the zip's own header
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header
    mappable = 0 not in shape and start % dtype.alignment == 0 and not dtype.hasobject
    if info.compress_type == zipfile.ZIP_STORED and mappable:
        return np.memmap(path, dtype, "c", start, shape, "F" if fortran_order else "C")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _npy_header(file):
    """(shape, whether in Fortran's order, dtype)."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"an array has version {version} of the npy format; accepted: 1.0, 2.0")
    return read[version](file)


class Parts:
    """A clip set in the making: batches land in OUT/parts as they come, so that a stopped run goes on behind them.

    Args:
        folder: the clip set.
        meta: settings; a folder made with other settings is refused.

    Raises:
        ValueError: the folder holds clips made with other settings.
    """

    def __init__(self, folder, meta):
        self.folder, self.parts = Path(folder), Path(folder) / "parts"
        path = self.folder / "meta.json"
        if path.is_file() and (found := read_json(path)) != meta:
            names = [n for n in sorted(found.keys() | meta.keys()) if found.get(n) != meta.get(n)]
            raise ValueError(f"{folder} holds clips made with other settings ({', '.join(names)} differ); choose "
                             "another folder or remove it")
        write_json(path, meta)

    def done(self):
        """Numbers of the clips that are stored."""
        if (self.folder / "clips.npz").is_file():
            return set(range(len(load(self.folder)["label"])))
        return {int(n) for path in self.parts.glob("*.npz") for n in read_arrays(path)["number"]}

    def add(self, numbers, **arrays):
        """Store a batch of clips under their numbers."""
        write_arrays(self.parts / f"{numbers[0]:07d}.npz", {"number": np.asarray(numbers), **arrays})

    def merge(self, total):
        """Join the parts into clips.npz, ordered by number, and remove them; memory does not grow with the clips.

        Raises:
            ValueError: clips are missing.
        """
        target = self.folder / "clips.npz"
        if target.is_file():
            return
        files = sorted(self.parts.glob("*.npz"))
        places, kinds = {}, {}
        for path in files:
            arrays = read_arrays(path)
            places |= {int(number): (path, row) for row, number in enumerate(arrays.pop("number"))}
            for name, values in arrays.items():
                kinds.setdefault(name, []).append(values[:0])
        if sorted(places) != list(range(total)):
            raise ValueError(f"{self.parts} holds {len(places)} of {total} clips; run the command again")
        opened = lru_cache(MAX_OPEN)(read_arrays)
        with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, empty in kinds.items():
                rows = (opened(path)[name][row] for path, row in map(places.get, range(total)))
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_rows(member, rows, total, np.concatenate(empty))
        for path in files:
            path.unlink()
        self.parts.rmdir()


def _write_rows(file, rows, count, like):
    """Write `count` rows as one array to an npy file, one at a time; dtype and shape of a row are those of `like`."""
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(like.dtype),
                                                "fortran_order": False, "shape": (count, *like.shape[1:])})
    for row in rows:
        file.write(np.ascontiguousarray(row, like.dtype).tobytes())


def grid_picture(video, columns, num_frames=5):
    """Contact sheet uint8 (H', W', 3): clips in `columns` columns, each as a strip of `num_frames` frames."""
    video = np.asarray(video)
    pick = np.linspace(0, video.shape[1] - 1, min(num_frames, video.shape[1])).round().astype(int)
    strips = [np.concatenate(list(clip[pick]), axis=1) for clip in video]
    strips += [np.zeros_like(strips[0])] * (-len(strips) % columns)
    rows = [np.concatenate(strips[i:i + columns], axis=1) for i in range(0, len(strips), columns)]
    return np.concatenate(rows)


def write_pictures(folder, fps, columns=4):
    """Write mp4/NNNNN.mp4 for every clip of a set, and grid.png of the first 48."""
    from PIL import Image

    from nbp.data.video_io import write_video

    folder = Path(folder)
    video = load(folder)["video"]
    for number, clip in enumerate(video):
        write_video(folder / "mp4" / f"{number:05d}.mp4", clip, fps)
    with atomic_path(folder / "grid.png") as temporary:
        Image.fromarray(grid_picture(video[:48], columns)).save(temporary)
