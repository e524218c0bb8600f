"""Clips in the making, as video: what the generator's steps have finished so far.

The tokenizer is causal, so that frames can be shown as soon as the tokens of their latent frame are there, while the
rest is drawn. Beyond the length that a generator was trained on a window slides over the latent frames: the last half
of them is given to a next clip, whose cache they fill, and the decoder goes on from chunk to chunk.
Legend: B batch, T H W pixels, t h w latent grid.
"""

import math
from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from nbp.generator.model import Generator
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import ChunkDecoder

MAX_SEED = 10**12       # times 1,000,003 a torch seed of 64 bits


class SamplingOptions(TypedDict, total=False):
    """How codes are drawn: arguments of `Generator.generate`."""

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    cfg_scale: float | None
    lookahead: int | None


class AskedSampling(TypedDict, total=False):
    """How codes are to be drawn; None: as the model's folder recommends."""

    greedy: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    cfg_scale: float | None
    lookahead: int | None


class VideoDraft:
    """Clips in the making; the frames that are given stay as they are. The models are in eval mode on one device.

    Args:
        condition: ids of each clip, integer (B, C); None: unconditional.
        streams: a random stream for each clip.
        given: frames to continue, float (B, 3, T', H, W) in [0, 1], T' = 1 + 4k; None: from nothing.
        sampling: see `Generator.generate`.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, generator: Generator, tokenizer: Tokenizer, condition: Tensor | None,
                 streams: list[torch.Generator], given: Tensor | None = None, prefix: Tensor | None = None,
                 **sampling: Unpack[SamplingOptions]) -> None:
        device = next(generator.parameters()).device
        self.tokenizer, self.given = tokenizer, given
        if given is not None:
            prefix = tokenizer.encode(given.to(device))[1].long()                         # (B, t', h, w)
        condition = None if condition is None else condition.to(device)
        self.draft = generator.begin(condition, prefix, generator=streams, **sampling)

    def step(self) -> bool:
        """Draw the next block of each clip; False where they are complete. ValueError then: the model gave NaN."""
        more = self.draft.step()
        if not more:
            self.draft.check()
        return more

    def indices(self) -> Tensor:
        """Video codes int64 (B, t, h, w); those that are not drawn yet are 0."""
        return self.draft.codes()

    def drawn(self) -> Tensor:
        """Which of them are there, bool (t, h, w)."""
        return self.draft.drawn()

    @property
    def num_frames(self) -> int:
        """Frames that can be shown: those before the first token that is missing."""
        return max(0, 1 + self.tokenizer.config.downsample[0] * (self.num_latents - 1))

    @property
    def num_latents(self) -> int:
        """Latent frames before the first token that is missing."""
        return int(self.drawn().flatten(1).all(1).int().cumprod(0).sum())

    @torch.no_grad()
    def video(self) -> Tensor:
        """The frames that can be shown, float32 (B, 3, num_frames, H, W) in [0, 1] on the CPU; there must be one."""
        return self._decode(self.indices()[:, :self.num_latents])

    @torch.no_grad()
    def preview(self) -> Tensor:
        """All frames, float32 (B, 3, T, H, W): missing tokens are those of the latent frame before, and where a latent
        frame has none yet, the last frame before it stands."""
        indices, drawn = self.indices().clone(), self.drawn().to(self.draft.codes().device)
        num_begun = max(1, int(drawn.flatten(1).any(1).sum()))
        for number in range(1, num_begun):
            indices[:, number] = torch.where(drawn[number], indices[:, number], indices[:, number - 1])
        video = self._decode(indices[:, :num_begun])
        num_missing = self.tokenizer.config.downsample[0] * (indices.shape[1] - num_begun)
        return torch.cat([video, video[:, :, -1:].expand(-1, -1, num_missing, -1, -1)], dim=2)

    def _decode(self, indices: Tensor) -> Tensor:
        video = ChunkDecoder(self.tokenizer).shown(indices)
        if self.given is not None:
            video[:, :, :self.given.shape[2]] = self.given.cpu()
        return video


def random_streams(seed: int, numbers: Sequence[int], device: torch.device | str) -> list[torch.Generator]:
    """A random stream for each clip: clip i depends on the seed and on i, not on its batch. ValueError: no seed."""
    if not (isinstance(seed, Integral) and abs(seed) < MAX_SEED):
        raise ValueError(f"seed must be a whole number between -{MAX_SEED} and {MAX_SEED}, got {seed}")
    return [torch.Generator(device).manual_seed(int(seed) * 1_000_003 + number) for number in numbers]


def continued(generator: Generator, tokenizer: Tokenizer, condition: Tensor | None, streams: list[torch.Generator],
              video: Tensor | None, num_frames: int,
              **sampling: Unpack[SamplingOptions]) -> Iterator[tuple[VideoDraft, Tensor | None]]:
    """Make video of any length, step by step, with memory that does not grow with it; models, `condition`, `streams`
    and `sampling` as for `VideoDraft`.

    Args:
        video: to continue, float (B, 3, T, H, W) in [0, 1], T at least 1; see `frames_to_give` for what of it is
            looked at. None: from nothing.
        num_frames: length in all.

    Yields:
        Before the first step and after each the draft of the window, and the frames that it has finished, float32
        (B, 3, T', H, W) on the CPU; None where there are none.

    Raises:
        ValueError: nothing to continue to, or pictures of another size than the model's.
    """
    if not isinstance(num_frames, Integral) or num_frames < 1:
        raise ValueError(f"num_frames must be a whole number, at least 1, got {num_frames}")
    check_window(generator, tokenizer, num_frames, video is not None)
    given, left, skipped = None, num_frames, 0
    if video is not None:
        check_given(generator, tokenizer, video, num_frames)
        skipped = frames_to_give(generator, tokenizer, video.shape[2])
        given, left = video[:, :, -skipped:], num_frames - video.shape[2]
    draft = VideoDraft(generator, tokenizer, condition, streams, given, **sampling)
    decode, decoded, kept = ChunkDecoder(tokenizer), 0, window_to_keep(generator)
    yield draft, None
    while left:
        if not draft.step():
            draft = VideoDraft(generator, tokenizer, condition, streams, prefix=draft.indices()[:, -kept:], **sampling)
            decoded = kept
            continue
        frames = None
        if draft.num_latents > decoded:
            frames = decode.shown(draft.indices()[:, decoded:draft.num_latents])[:, :, skipped:skipped + left]
            decoded, skipped = draft.num_latents, 0
            left -= frames.shape[2]
        yield draft, frames if frames is not None and frames.shape[2] else None
    draft.draft.check()


def window_to_keep(generator: Generator) -> int:
    """Latent frames of a full window that are given to the next one: half of them, in whole blocks."""
    longest, whole = generator.config.grid[0], latents_of_blocks(generator)
    return max(whole, longest // 2 // whole * whole)


def latents_of_blocks(generator: Generator) -> int:
    """The fewest latent frames that are whole blocks: a block in raster order may end in the middle of a frame."""
    (_, height, width), shape = generator.config.grid, generator.config.block_shape
    size = math.prod(shape)
    return math.lcm(shape[0], size // math.gcd(size, height * width))


def frames_to_give(generator: Generator, tokenizer: Tokenizer, num_frames: int) -> int:
    """How many of the last frames of a video are given to continue it, whole latent frames and whole blocks of them:
    all that leave something to predict; behind a whole clip, half of one."""
    stride, longest, block = tokenizer.config.downsample[0], generator.config.grid[0], latents_of_blocks(generator)
    num_latents = min(1 + (num_frames - 1) // stride, longest - block)
    if num_frames > stride * (longest - 1):
        num_latents = window_to_keep(generator)
    return 1 + stride * (max(block, num_latents - num_latents % block) - 1)


def as_batch(video: Tensor) -> Tensor:
    """Video ([B,] 3, T, H, W) -> float32 (B, 3, T, H, W). ValueError: it is no video."""
    if not (isinstance(video, Tensor) and video.is_floating_point() and video.ndim in (4, 5) and video.shape[-4] == 3):
        raise ValueError("video must be a float tensor (3, T, H, W) or (B, 3, T, H, W) in [0, 1], got "
                         f"{getattr(video, 'dtype', type(video).__name__)} {tuple(getattr(video, 'shape', ()))}")
    return (video if video.ndim == 5 else video[None]).float()


def check_given(generator: Generator, tokenizer: Tokenizer, video: Tensor, num_frames: int) -> None:
    """ValueError: video (B, 3, T, H, W) cannot be continued to that length."""
    size = tuple(cells * pixels for cells, pixels in zip(generator.config.grid[1:], tokenizer.config.downsample[1:]))
    if tuple(video.shape[3:]) != size:
        raise ValueError(f"the model continues video of {size[0]}x{size[1]} pixels, got {video.shape[3]}x"
                         f"{video.shape[4]}; read_video(path, size={size[0] if size[0] == size[1] else size}) fits it")
    fewest = 1 + tokenizer.config.downsample[0] * (latents_of_blocks(generator) - 1)
    if video.shape[2] < fewest:
        raise ValueError(f"blocks of {generator.config.block_shape} need at least {fewest} frames to continue, got "
                         f"{video.shape[2]}")
    check_length(video.shape[2], num_frames)


def check_window(generator: Generator, tokenizer: Tokenizer, num_frames: int, given: bool) -> None:
    """ValueError: frames are given, or more asked for than a clip has, and one block spans the clip in time, so that
    none can be given to a window."""
    grid, shape = generator.config.grid, generator.config.block_shape
    longest = 1 + tokenizer.config.downsample[0] * (grid[0] - 1)
    if window_to_keep(generator) >= grid[0] and (given or num_frames > longest):
        raise ValueError(f"a block of {shape} spans the whole clip of {grid}: this model continues nothing, and makes "
                         f"at most {longest} frames, got num_frames={num_frames}")


def check_length(given: int, num_frames: int) -> None:
    """ValueError: that many frames cannot be continued to that length."""
    if not 1 <= given < num_frames:
        raise ValueError(f"num_frames is the length in all and must be above the {given} frames that are given, got "
                         f"{num_frames}")
