"""From requests to clips: whole, or written while they are drawn.

Legend: B batch, T H W pixels, t h w latent grid, C condition tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from nbp.data.clips import video_to_frames
from nbp.data.dataset import VideoDataset
from nbp.data.video_writing import GrowingVideo
from nbp.generator.model import Generator
from nbp.system.distributed import rank_and_world
from nbp.tokenizer.model import Tokenizer
from nbp.workflows.drafting import SamplingOptions, VideoDraft, continued, random_streams

Encoder: TypeAlias = Callable[[dict[str, Any]], Tensor]  # dict with label (B,) and text (B) -> ids (B, C)


@dataclass(frozen=True)
class Request:
    """Clip `number` of a run: its class id (-1: none), text, and the validation item that it continues (-1: none)."""

    number: int
    label: int = -1
    text: str = ""
    item: int = -1
    path: str = ""


@dataclass(frozen=True)
class Continued:
    """The clips that are continued, and how many of their frames are given, 1 + 4k."""

    dataset: VideoDataset
    prefix_frames: int


@dataclass(frozen=True)
class Made:
    """Clips of a batch: the requests that were met, frames uint8 (B, T, H, W, 3), indices int32 (B, t, h, w). Clips of
    another length than the model's are drawn in windows, which have no common indices."""

    requests: list[Request]
    frames: np.ndarray
    indices: np.ndarray | None


def generate_clips(generator: Generator, tokenizer: Tokenizer, requests: Sequence[Request], encode: Encoder | None,
                   continued: Continued | None = None, seed: int = 0, num_frames: int | None = None,
                   **sampling: Unpack[SamplingOptions]) -> Made | None:
    """Generate one batch, of `num_frames` each or as the model's clips, with models in eval mode on one device; given
    frames stay as they were. Clip i draws from its own stream, seeded by (seed, i). Requests of bad files, up to
    `data.max_bad_files`, are left out; None where no file of the batch can be read."""
    if num_frames is not None:
        met, pieces = clip_pieces(generator, tokenizer, requests, encode, continued, seed, num_frames, **sampling)
        return Made(met, np.concatenate([video_to_frames(piece) for piece in pieces], axis=1), None) if met else None
    met, given = given_frames(requests, continued)
    if not met:
        return None
    streams = random_streams(seed, [request.number for request in met], next(generator.parameters()).device)
    draft = VideoDraft(generator, tokenizer, conditions(met, encode), streams, given, **sampling)
    while draft.step():
        pass
    return Made(met, video_to_frames(draft.video()), draft.indices().cpu().numpy().astype(np.int32))


def clip_pieces(generator: Generator, tokenizer: Tokenizer, requests: Sequence[Request], encode: Encoder | None,
                given: Continued | None = None, seed: int = 0, num_frames: int | None = None,
                **sampling: Unpack[SamplingOptions]) -> tuple[list[Request], Iterator[Tensor]]:
    """The requests that can be met, and their frames as they are finished, float32 (B, 3, T, H, W) each, which together
    are the clips, given frames first; arguments as for `generate_clips`."""
    met, video = given_frames(requests, given)
    if not met:
        return [], iter(())
    length = num_frames or 1 + tokenizer.config.downsample[0] * (generator.config.grid[0] - 1)
    streams = random_streams(seed, [request.number for request in met], next(generator.parameters()).device)
    drafts = continued(generator, tokenizer, conditions(met, encode), streams, video, length, **sampling)

    def pieces() -> Iterator[Tensor]:
        if video is not None:
            yield video
        yield from (piece for _, piece in drafts if piece is not None)

    return met, pieces()


def stream_clips(out: Path, requests: Sequence[Request], batch_size: int, fps: float,
                 make: Callable[[list[Request]], tuple[list[Request], Iterator[Tensor]]]) -> None:
    """Write OUT/mp4/NNNNN.mp4 of each request that has none, as NNNNN.mp4.part while it is drawn, which can be watched
    meanwhile; `make` is as `clip_pieces`. Memory does not grow with the length."""
    rank, world = rank_and_world()
    mine = [request for request in requests[rank::world] if not (out / "mp4" / f"{request.number:05d}.mp4").exists()]
    for first in range(0, len(mine), batch_size):
        start, count = time.perf_counter(), 0
        met, pieces = make(mine[first:first + batch_size])
        files = [GrowingVideo(out / "mp4" / f"{request.number:05d}.mp4", fps) for request in met]
        for piece in pieces:
            if not count:
                print(f"{out / 'mp4'}: first frame of {len(met)} clips after {time.perf_counter() - start:.2f} s",
                      flush=True)
            for file, frames in zip(files, video_to_frames(piece)):
                file.add(frames)
            count += piece.shape[2]
        for file in files:
            file.close()
        seconds = time.perf_counter() - start
        print(f"{len(met)} clips of {count} frames in {seconds:.1f} s, {len(met) * count / seconds:.1f} frames/s",
              flush=True)


def given_frames(requests: Sequence[Request], given: Continued | None) -> tuple[list[Request], Tensor | None]:
    """The requests whose files can be read, and the frames that their clips begin with, (B, 3, T, H, W)."""
    if given is None:
        return list(requests), None
    samples = [(request, given.dataset[request.item]) for request in requests]
    found = [(request, sample["video"][:, :given.prefix_frames]) for request, sample in samples if sample is not None]
    return [request for request, _ in found], torch.stack([video for _, video in found]) if found else None


def conditions(requests: Sequence[Request], encode: Encoder | None) -> Tensor | None:
    """Condition ids (B, C) of requests; None without an encoder."""
    if encode is None:
        return None
    return encode({"label": torch.tensor([r.label for r in requests]), "text": [r.text for r in requests]})
