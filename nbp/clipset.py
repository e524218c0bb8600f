"""A clip set: a folder with lossless clips, made by generate, reconstruct and baselines, read by evaluate and report.

clips.npz holds video uint8 (N,T,H,W,3), label int64 (N,), -1 without a class, path (N,) str and, where there
are tokens, indices int32 (N,t,h,w); meta.json says how it was made.
"""

from pathlib import Path

import numpy as np

from nbp.files import atomic_path, read_json, write_json


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


def load(folder):
    """Arrays of a clip set as a dict.

    Raises:
        ValueError: no clips.npz in there, or one without `video` and `label`.
    """
    path = Path(folder) / "clips.npz"
    if not path.is_file():
        raise ValueError(f"{folder} is not a clip set: clips.npz is missing")
    arrays = read_arrays(path)
    if not {"video", "label"} <= set(arrays):
        raise ValueError(f"{path} must hold video and label, found {', '.join(sorted(arrays))}")
    return arrays


def write_arrays(path, arrays):
    """Write an npz file, atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_arrays(path):
    """All arrays of an npz file; never unpickles.

    Raises:
        ValueError: not an npz file of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {error}") from error


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
            raise ValueError(f"{folder} holds clips made with other settings ({', '.join(names)} differ); choose another "
                             "folder or remove it")
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
        """Join the parts into clips.npz, ordered by number, and remove them.

        Raises:
            ValueError: clips are missing.
        """
        if (self.folder / "clips.npz").is_file():
            return
        files = sorted(self.parts.glob("*.npz"))
        parts = [read_arrays(path) for path in files]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        numbers, first = np.unique(joined.pop("number"), return_index=True)
        if not np.array_equal(numbers, np.arange(total)):
            raise ValueError(f"{self.parts} holds {len(numbers)} of {total} clips; run the command again")
        write_arrays(self.folder / "clips.npz", {name: values[first] for name, values in joined.items()})
        for path in files:
            path.unlink()
        self.parts.rmdir()


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
