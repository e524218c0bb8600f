"""Known damage to clips, in steps, to see whether a score answers to it.

Every function maps frames uint8 (T,H,W,3), a level and a random generator to frames of the same kind; a
higher level is more damage. Re-encoding needs a codec, which the caller brings as one more such function.
Legend: T frames, H W pixels.
"""

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from nbp.evaluation.features import Clips

CORRUPTIONS_VERSION = 1  # raise it when a level means other pixels; features are cached under it
Damage: TypeAlias = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def blur(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of each frame; the level is sigma in pixels."""
    from scipy.ndimage import gaussian_filter

    return _to_uint8(gaussian_filter(frames.astype(np.float32), (0, level, level, 0), mode="nearest"))


def noise(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """White noise; the level is its deviation in grey levels."""
    return _to_uint8(frames + rng.normal(0, level, frames.shape).astype(np.float32))


def frozen(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """The last share `level` of the frames shows the frame before them; at 1 the clip is a still."""
    kept = len(frames) - round(level * (len(frames) - 1))
    return np.concatenate([frames[:kept], np.repeat(frames[kept - 1:kept], len(frames) - kept, axis=0)])


def shuffled(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Frames in random order within windows of `level` frames."""
    window = int(level)
    starts = range(0, len(frames), window)
    return np.concatenate([rng.permutation(frames[start:start + window], axis=0) for start in starts])


def shift(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """The picture moved right by `level` pixels, its edge repeated."""
    return frames[:, :, (np.arange(frames.shape[2]) - int(level)).clip(0)]


# name -> (function, levels, what the level is)
CORRUPTIONS: dict[str, tuple[Damage, tuple[float, ...], str]] = {
    "blur": (blur, (0.5, 1.0, 2.0, 4.0), "sigma in pixels"),
    "noise": (noise, (4, 8, 16, 32), "deviation in grey levels"),
    "frozen": (frozen, (0.25, 0.5, 1.0), "share of frames"),
    "shuffled": (shuffled, (2, 4, 16), "frames in a window"),
    "shift": (shift, (1, 2, 4), "pixels"),
}


def corrupted(clips: Clips, name: str, damage: Damage, level: float, num_frames: int | None = None) -> Clips:
    """A set with every clip damaged as far as `level` says, in its first `num_frames` or all; the random part depends
    on the clip's number only. `name` goes into the set's name and fingerprint."""
    def read(number: int) -> np.ndarray:
        return damage(clips.pixels(number)[:num_frames], level, np.random.default_rng(number))

    made_of = f"{clips.fingerprint} {name} {level} {num_frames} {CORRUPTIONS_VERSION}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Clips(f"{clips.name}, {name} {level:g}", len(clips), read, digest, clips.labels, clips.forkable,
                 rates=clips.rates, paths=clips.paths)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
