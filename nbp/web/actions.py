"""What the page does, without the page: each action yields pictures and words as it goes on.

Uploads are read by the one reader and deleted at once. Legend: T H W pixels, t h w latent grid.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nbp.data.clips import video_to_frames
from nbp.data.video import read_video, write_video
from nbp.data.video_io import VIDEO_SUFFIXES, VideoError, probe
from nbp.evaluation.quality import psnr
from nbp.generator.model import Generator
from nbp.pipeline import VideoPipeline
from nbp.system.command import mistake
from nbp.workflows.drafting import AskedSampling, VideoDraft

MAX_UPLOAD_MB, MAX_SECONDS, MAX_PIXELS = 64, 600, 4096 * 2304
SHOWN_PIXELS = 192      # height of a frame on the page, at least
EVERY_S = 0.1           # between two pictures of one clip; more where drawing one takes longer
COPIED_S = 60           # after which the page has its copy of a clip


class Shown(NamedTuple):
    """What the page shows: a picture, words, and at the end the path of an mp4."""

    picture: np.ndarray | None
    words: str
    path: str | None = None


def told(action: Callable[..., Iterator[Shown]], *arguments: object) -> Iterator[Shown]:
    """Run an action; a mistake of its user becomes the words that the command line would print."""
    try:
        yield from action(*arguments)
    except Exception as error:
        yield Shown(None, told_words(error))


def told_words(error: Exception) -> str:
    """The line of the command line for a mistake; a bug is raised again."""
    if (words := mistake(error)) is None:
        raise error
    return words


def take_upload(pipe: VideoPipeline, path: str | None, num_frames: int | None = None) -> Tensor:
    """Read an uploaded video (None: nothing was) as a clip of the model's size and rate, from its beginning, float32
    (3, T, H, W) in [0, 1], and delete the file. ValueError: no video, one that cannot be read, or one beyond the limits
    of the page."""
    if path is None:
        raise ValueError("choose a video first")
    try:
        if Path(path).suffix.lower() not in VIDEO_SUFFIXES:        # FFmpeg opens the files that a playlist names
            raise ValueError(f"{Path(path).name} has none of the suffixes of videos: {', '.join(VIDEO_SUFFIXES)}")
        info = probe(path)
        if info.duration_s > MAX_SECONDS:
            raise VideoError(f"lasts {info.duration_s:.0f} s; at most {MAX_SECONDS} s", Path(path).name)
        if info.width * info.height > MAX_PIXELS:
            raise VideoError(f"has {info.width}x{info.height} pixels; at most 4096x2304", Path(path).name)
        return read_video(path, num_frames or pipe.num_frames, pipe.fps, pipe.size, start=0)
    except VideoError as error:     # its folder is the server's business
        raise ValueError(str(error).replace(str(path), Path(path).name)) from error
    finally:
        Path(path).unlink(missing_ok=True)


def generate(pipe: VideoPipeline, out: Path, label: str | None, prompt: str | None, seed: int, temperature: float,
             top_k: int, top_p: float, cfg_scale: float) -> Iterator[Shown]:
    """A clip of a class or prompt, block by block."""
    sampling: AskedSampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "cfg_scale": cfg_scale}
    drafts = pipe.drafts([label] if label else None, [prompt] if prompt else None, 1, seed, **sampling)
    yield from _follow(pipe, drafts, out)


def extend(pipe: VideoPipeline, out: Path, video: Tensor | None, num_given: float, num_frames: float,
           label: str | None, seed: int, temperature: float) -> Iterator[Shown]:
    """The first frames of a video, continued."""
    if video is None:
        raise ValueError("choose a video first")
    drafts = pipe.drafts([label] if label else None, None, None, seed, video[None, :, :int(num_given)],
                         int(num_frames), temperature=temperature)
    yield from _follow(pipe, drafts, out)


def race(pipe: VideoPipeline, label: str | None, seed: int) -> Iterator[tuple[Shown, Shown]]:
    """One clip by next-block prediction, then one by next-token prediction with the same transformer: one trained on
    blocks cannot draw single tokens, so the second has random weights; its time does not depend on them, at one step a
    pass."""
    config = dataclasses.replace(pipe.generator.config, block_shape=[1, 1, 1])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        generator = Generator(config).to(pipe.device).eval()
    tokens = VideoPipeline(pipe.tokenizer, generator, pipe.about, pipe.text_tokenizer)
    sides, times = [Shown(None, "waits"), Shown(None, "waits")], [0.0, 0.0]
    for side, (runner, name) in enumerate(((pipe, "next block"), (tokens, "next token, random weights"))):
        drafts = runner.drafts([label] if label else None, None, 1, seed, lookahead=1)
        number, last = 0, -EVERY_S
        while True:
            start = time.perf_counter()     # drawing pictures does not count
            draft, _ = next(drafts, (None, None))
            times[side] += time.perf_counter() - start
            if draft is None:
                break
            if times[side] - last >= EVERY_S or draft.draft.known == draft.draft.total:
                last = times[side]
                picture = draw_step(draft) if runner is pipe else draw_mask(draft)
                sides[side] = Shown(picture, f"{name}: step {number}, {times[side]:.2f} s")
                yield sides[0], sides[1]
            number += 1
    words = f"{sides[1].words}; next-block prediction is {times[1] / times[0]:.1f} times as fast"
    yield sides[0], Shown(sides[1].picture, words)


def reconstruct(pipe: VideoPipeline, out: Path, video: Tensor | None) -> Iterator[Shown]:
    """Video to tokens and back: tokens as a picture, the error, and both videos side by side."""
    if video is None:
        raise ValueError("choose a video first")
    tokens = pipe.encode(video)
    back = pipe.decode(tokens)
    path = write_clip(out, torch.cat([video, back], dim=-1), pipe.fps)
    quality = float(psnr(back[None], video[None]).mean())
    words = (f"PSNR {quality:.2f} dB; {tokens.numel()} tokens, {tokens.unique().numel()} different ones of "
             f"{pipe.tokenizer.num_codes}; left the video, right its reconstruction")
    yield Shown(draw_tokens(tokens.numpy(), pipe.tokenizer.num_codes), words, path)


def _follow(pipe: VideoPipeline, drafts: Iterator[tuple[VideoDraft, Tensor | None]], out: Path) -> Iterator[Shown]:
    """Pictures from the first block on, then the clip."""
    start = time.perf_counter()
    shown_at, pause, frames, draft = start, 0.0, None, None
    for number, (draft, frames) in enumerate(drafts):  # noqa: B007
        known, now = draft.draft.known, time.perf_counter()
        if known >= math.prod(pipe.generator.config.block_shape) and now - shown_at >= pause:
            picture, shown_at = draw_step(draft), time.perf_counter()
            pause = max(EVERY_S, shown_at - now)
            yield Shown(picture, f"step {number}: {known} of {draft.draft.total} tokens, {shown_at - start:.1f} s")
    assert draft is not None and frames is not None
    words = f"{frames.shape[2]} frames in {number} steps, {time.perf_counter() - start:.1f} s"
    yield Shown(draw_step(draft), words, write_clip(out, frames[0], pipe.fps))


def write_clip(out: Path, video: Tensor, fps: float) -> str:
    """Write an mp4 for the page, which takes a copy; those of before are removed."""
    for path in out.glob("clip-*.mp4"):
        with contextlib.suppress(FileNotFoundError):       # another visitor's thread removes them as well
            if time.time() - path.stat().st_mtime > COPIED_S:
                path.unlink()
    path = out / f"clip-{time.time_ns()}.mp4"
    write_video(path, enlarged(video), fps)
    return str(path)


def enlarged(video: Tensor) -> Tensor:
    """Small video (3, T, H, W) with each pixel as a square, so that players and h264 keep its colours."""
    factor = max(1, -(-256 // video.shape[2]))
    return video.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def draw_step(draft: VideoDraft) -> np.ndarray:
    """The last frame of each latent frame in a row; cells whose token is not drawn yet are dark: uint8 (H', W', 3)."""
    stride, frames = draft.tokenizer.config.downsample[0], video_to_frames(draft.preview()[0])
    drawn = draft.drawn().numpy()
    height, width = frames.shape[1] // drawn.shape[1], frames.shape[2] // drawn.shape[2]
    factor = max(1, -(-SHOWN_PIXELS // frames.shape[1]))
    pieces = []
    for number, mask in enumerate(drawn):
        shade = np.where(mask, 1.0, 0.15).repeat(height, 0).repeat(width, 1)[..., None]       # (H, W, 1)
        pieces.append((frames[number * stride] * shade).astype(np.uint8).repeat(factor, 0).repeat(factor, 1))
    return _row(pieces)


def draw_mask(draft: VideoDraft) -> np.ndarray:
    """Which tokens are drawn, a square for each latent frame: uint8 (H', W', 3)."""
    drawn = draft.drawn().numpy()
    factor = max(1, -(-SHOWN_PIXELS // drawn.shape[1]))
    grey = np.where(drawn, 200, 40).astype(np.uint8)[..., None].repeat(3, -1)                  # (t, h, w, 3)
    return _row([cells.repeat(factor, 0).repeat(factor, 1) for cells in grey])


def draw_tokens(tokens: np.ndarray, num_codes: int) -> np.ndarray:
    """Tokens (t, h, w) as colours, a square for each latent frame: uint8 (H', W', 3)."""
    from matplotlib import colormaps

    colours = (colormaps["turbo"](tokens / max(1, num_codes - 1))[..., :3] * 255).astype(np.uint8)
    factor = max(1, -(-SHOWN_PIXELS // tokens.shape[1]))
    return _row([cells.repeat(factor, 0).repeat(factor, 1) for cells in colours])


def _row(pieces: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((pieces[0].shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([part for piece in pieces for part in (piece, gap)][:-1], axis=1)
