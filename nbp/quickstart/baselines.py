"""Clip sets to beat, made from nothing but pixels, code counts and chance.

python -m nbp.quickstart.baselines --real RUN/reconstruction/real.npz --generated RUN/generated \
    --predicted RUN/predicted --tokenizer RUN/tokenizer/model --tokens RUN/tokens/train --out RUN/baselines
pooled: real clips averaged over the tokenizer's strides and spread out again; frozen: the given frames, then
the last of them to the end; class_tokens: tokens drawn independently by how often their class uses them;
uniform_tokens: any code as likely as any other. Legend: N clips, T H W pixels, t h w latent grid, V codes.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nbp.data import clip_set
from nbp.data.clips import frames_to_video, video_to_frames
from nbp.data.tokens import TokenDataset
from nbp.hub.models import model_hash
from nbp.system.command import run_command
from nbp.system.progress import progress
from nbp.tokenizer.model import Tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    out, generator = Path(options.out), torch.Generator().manual_seed(options.seed)
    real = clip_set.read_arrays(options.real)
    generated, predicted = clip_set.load(options.generated), clip_set.load(options.predicted)
    tokenizer = Tokenizer.from_pretrained(options.tokenizer, device=options.device)
    tokens = TokenDataset(options.tokens, model_hash(tokenizer))

    pooled = np.stack([pool(clip, tokenizer.config.downsample) for clip in real["video"]])
    save(out / "pooled", pooled, real, options)
    continued = clips_of(real, predicted["path"], options.real)
    frozen = freeze(continued["video"], options.prefix_frames)
    save(out / "frozen", frozen, continued, options)

    labels, shape = generated["label"], tuple(generated["indices"].shape[1:])
    by_class = draw(class_frequencies(tokens), labels, shape, generator)
    uniform = torch.randint(tokenizer.num_codes, (len(labels), *shape), generator=generator)
    for name, indices in (("class_tokens", by_class), ("uniform_tokens", uniform)):
        video = decode(tokenizer, indices, options.batch_size, name)
        save(out / name, video, {"label": labels, "indices": indices.numpy()}, options)


def save(folder: Path, video: np.ndarray, like: Mapping[str, np.ndarray], options: argparse.Namespace) -> None:
    """Write a clip set with the labels, paths and indices of `like`."""
    clip_set.save(folder, video, like["label"], like.get("path"), like.get("indices"),
                 {"seed": options.seed, "real": options.real, "tokenizer": options.tokenizer, "tokens": options.tokens,
                  "prefix_frames": options.prefix_frames})
    print(f"wrote {len(video)} clips to {folder}")


def pool(frames: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Average a clip uint8 (T, H, W, 3) over the tokenizer's causal grid of `strides` (t, h, w), whose first frame
    stands alone, and repeat the averages: the grid in raw pixels. ValueError: a size that the strides do not divide."""
    t, h, w = strides
    if (frames.shape[0] - 1) % t or frames.shape[1] % h or frames.shape[2] % w:
        raise ValueError(f"clip of {frames.shape[0]} frames of {frames.shape[1]}x{frames.shape[2]} does not fit the "
                         f"strides {tuple(strides)}")
    video = frames_to_video(frames)
    parts = []
    for part, depth in ((video[:, :1], 1), (video[:, 1:], t)):
        if part.shape[1]:
            means = F.avg_pool3d(part, (depth, h, w))
            parts.append(means.repeat_interleave(depth, 1).repeat_interleave(h, 2).repeat_interleave(w, 3))
    return video_to_frames(torch.cat(parts, 1))


def freeze(video: np.ndarray, num_given: int) -> np.ndarray:
    """Clips (N, T, ...) that stand still after `num_given` frames. ValueError: none are given, or none are left."""
    if not 0 < num_given < video.shape[1]:
        raise ValueError(f"prefix frames must lie in 1..{video.shape[1] - 1}, got {num_given}")
    still = np.repeat(video[:, num_given - 1:num_given], video.shape[1] - num_given, axis=1)
    return np.concatenate([video[:, :num_given], still], axis=1)


def clips_of(real: Mapping[str, np.ndarray], paths: np.ndarray, source: str) -> dict[str, np.ndarray]:
    """The clips of `real` (arrays by name) with these paths, in their order. ValueError: `source` lacks a path."""
    place = {path: number for number, path in enumerate(real["path"].tolist())}
    missing = [path for path in paths.tolist() if path not in place]
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} of {len(paths)} predicted clips, first {missing[0]!r}")
    order = [place[path] for path in paths.tolist()]
    return {name: real[name][order] for name in ("video", "label", "path")}


def class_frequencies(tokens: TokenDataset) -> Tensor:
    """How often each class uses each code, float64 (classes, V), each row with the sum 1. ValueError: clips without a
    class, or a class without clips."""
    counts = torch.zeros(len(tokens.classes), tokens.num_codes, dtype=torch.float64)
    if not len(counts) or min(tokens.labels) < 0:
        raise ValueError(f"{tokens.folder} has clips without a class; class frequencies need labels")
    for item in range(len(tokens)):
        sample = tokens[item]
        counts[sample["label"]] += torch.bincount(sample["indices"].flatten(), minlength=tokens.num_codes)
    empty = [name for name, total in zip(tokens.classes, counts.sum(1).tolist()) if total == 0]
    if empty:
        raise ValueError(f"{tokens.folder} has no clips of {', '.join(empty)}")
    return counts / counts.sum(1, keepdim=True)


def draw(frequencies: Tensor, labels: Sequence[int] | np.ndarray, shape: tuple[int, ...],
         generator: torch.Generator | None) -> Tensor:
    """Indices int64 (N, t, h, w), drawn from the frequencies (classes, V) of the clip's class. ValueError: no class."""
    chosen = torch.as_tensor(labels)  # (N,)
    if chosen.min() < 0 or chosen.max() >= len(frequencies):
        raise ValueError(f"labels must lie in 0..{len(frequencies) - 1}, got {int(chosen.min())}..{int(chosen.max())}")
    count = int(np.prod(shape))
    return torch.multinomial(frequencies[chosen], count, replacement=True, generator=generator).view(-1, *shape)


@torch.inference_mode()
def decode(tokenizer: Tokenizer, indices: Tensor, batch_size: int, name: str) -> np.ndarray:
    """Indices (N, t, h, w) -> uint8 frames (N, T, H, W, 3)."""
    device = next(tokenizer.parameters()).device
    clips = []
    for batch in progress(indices.split(batch_size), -(-len(indices) // batch_size), f"decode {name}", "batches"):
        clips.append(video_to_frames(tokenizer.decode_from_code_indices(batch.to(device))))
    return np.concatenate(clips)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.quickstart.baselines", description=__doc__.splitlines()[0])
    parser.add_argument("--real", required=True, help="npz with video, label and path of the real clips")
    parser.add_argument("--generated", required=True, help="clip set whose labels and grid the token baselines take")
    parser.add_argument("--predicted", required=True, help="clip set whose source clips are frozen")
    parser.add_argument("--tokenizer", required=True, help="native model folder or official file")
    parser.add_argument("--tokens", required=True, help="training token cache")
    parser.add_argument("--out", required=True, help="folder for the clip sets")
    parser.add_argument("--prefix-frames", type=int, default=5, help="frames that the predictions were given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
