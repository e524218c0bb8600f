"""Cached decoding: logits of new positions from the keys and values of old ones, and clips filled step by step.

Legend: B batch, n new positions, m of them that predict, C condition tokens, D width, V ids that can be drawn.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from nbp.config import GeneratorConfig
from nbp.generator.arguments import Grid, Prefix
from nbp.generator.cuda_graph import Recorded, can_record
from nbp.generator.masks import attention_mask
from nbp.generator.sampling import Sampling, sample
from nbp.generator.sequence import Layout, to_grid
from nbp.generator.transformer import KVCache, Transformer


class CachedDecoder:
    """Step function for a `Draft`: new stream ids -> logits over the ids that may be drawn.

    With guidance, rows 0..B-1 of what the transformer sees are the conditional clips and B..2B-1 the same clips
    without a condition. Steps that are replayed as CUDA graphs (see `can_record`) read the whole cache, so that they
    have fixed shapes; the mask hides what is not written yet.

    Args:
        transformer, embedding, head: of the model; `head` gives hidden states (B, m, D) the logits (B, m, V).
        layout: its `Layout`.
        prefix: condition of the clips, and behind them, with guidance, of the unconditional ones.
        length: stream positions that will be decoded.
        pad_visibility: see `attention_mask`.
        cfg_scale: uncond + scale * (cond - uncond); None: no guidance.
    """

    def __init__(self, transformer: Transformer, embedding: Callable[[Tensor], Tensor],
                 head: Callable[[Tensor], Tensor], layout: Layout, prefix: Prefix, length: int, pad_visibility: str,
                 cfg_scale: float | None) -> None:
        self.transformer, self.embedding, self.head = transformer, embedding, head
        self.layout, self.prefix = layout, prefix
        self.pad_visibility, self.cfg_scale = pad_visibility, cfg_scale
        self.cache = KVCache(len(transformer.layers), layout.condition_len + length)
        self._mask: Tensor | None = None                # of all positions, for steps that are replayed
        self._recorded: dict[int, Recorded] = {}        # number of new positions -> step
        sharded = any(hasattr(p, "ds_id") for p in transformer.parameters())      # ZeRO-3 gathers them at each step
        if can_record(prefix.embeddings) and not sharded:
            hidden = prefix.pads if pad_visibility != "decoding" else None      # as behind the first step
            self._mask = attention_mask(layout, 0, self.cache.length, hidden, pad_visibility, prefix.embeddings.device)

    def __call__(self, ids: Tensor, first: int, count: int) -> Tensor:
        """Decode.

        Args:
            ids: of new stream positions, int64 (B, n).
            first: position of ids[:, 0]; all before it have been decoded.
            count: m, how many of the last positions predict.

        Returns:
            Logits float32 (B, m, V); a replayed step overwrites those of the step before.
        """
        if first > 0 and self._mask is not None:
            return self._replayed(ids, first)[:, -count:]
        x, start = self._embed(ids), 0                                      # (B, n, D)
        if first == 0:
            x = torch.cat([self.prefix.embeddings, x], dim=1)               # (B, C + n, D)
        else:
            start = self.layout.condition_len + first
        mask = attention_mask(self.layout, start, start + x.shape[1], self.prefix.pads, self.pad_visibility, x.device)
        return self._logits(self.transformer(x, mask, self.cache, start)[:, -count:])

    def _replayed(self, ids: Tensor, first: int) -> Tensor:
        start, size = self.layout.condition_len + first, ids.shape[1]
        positions = torch.arange(start, start + size, device=ids.device)    # (n,)
        if size not in self._recorded:
            # Not the method itself: a circle would keep the cache in the GPU's memory until Python looks for circles.
            self._recorded[size] = Recorded(partial(CachedDecoder._whole_cache_step,
                                                     cast(CachedDecoder, weakref.proxy(self))))
        return self._recorded[size](ids, positions)

    def _whole_cache_step(self, ids: Tensor, positions: Tensor) -> Tensor:
        assert self._mask is not None
        mask = self._mask.index_select(-2, positions)                       # (n, C + length)
        return self._logits(self.transformer(self._embed(ids), mask, self.cache, positions))

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x if self.cfg_scale is None else torch.cat([x, x])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden).float()
        if self.cfg_scale is None:
            return logits
        conditional, free = logits.chunk(2)
        return free + self.cfg_scale * (conditional - free)


class Draft:
    """Clips in the making: `step` draws the next block of each.

    Args:
        logits_of: gives the logits of each step, as a `CachedDecoder` does.
        config, layout: the model's.
        grid: latent grid (t, h, w) of the clips.
        stream: token ids (B, positions) from `Layout.stream`, the first `known` video tokens in place.
        known: number of video tokens that are given.
        sampling, generators: as for `sample`.

    Attributes:
        known: number of video tokens of each clip that are there.
    """

    def __init__(self, logits_of: Callable[[Tensor, int, int], Tensor], config: GeneratorConfig, layout: Layout,
                 grid: Grid, stream: Tensor, known: int, sampling: Sampling,
                 generators: Sequence[torch.Generator | None]) -> None:
        self.logits_of, self.config, self.layout, self.grid = logits_of, config, layout, grid
        self.known, self.total = known, math.prod(grid)
        self._stream, self._sampling, self._generators = stream, sampling, generators
        self._positions, self._first = layout.video_positions(self.total), 0
        # Id of the first one that is scored.
        self._offset = 0 if config.clamp_samples else layout.video_offset
        self._sums: Tensor | None = None        # of all logits so far: not finite where one of them is not

    @torch.inference_mode(False)        # a draft may be begun in it and go on outside
    @torch.no_grad()
    def step(self) -> bool:
        """Draw the next block; False where the clips are complete."""
        if self.known >= self.total:
            return False
        end, count = self.layout.known_positions(self.known), self.layout.next_tokens(self.known)
        logits = self._logits(end, count)
        start = int(self._positions[self.known])
        self._stream[:, start:start + count] = sample(logits, self._sampling, self._generators) + self._offset
        self.known += count
        self._first = end
        return True

    def _logits(self, end: int, count: int) -> Tensor:
        """Logits (B, count, V) of the last stream positions before `end`."""
        logits = self.logits_of(self._stream[:, self._first:end], self._first, count)
        total = logits.sum(dtype=torch.float32)
        self._sums = total if self._sums is None else self._sums + total
        return logits

    def check(self) -> None:
        """ValueError: the model has given NaN or infinity so far, and what was drawn means nothing."""
        if self._sums is not None and not self._sums.isfinite():
            raise ValueError("the generator gave NaN or infinite logits: its weights are damaged, or too large for "
                             "this precision; use float32")

    def checked_codes(self) -> Tensor:
        """`codes`, or the error of `check`."""
        self.check()
        return self.codes()

    def codes(self) -> Tensor:
        """Video codes int64 (B, t, h, w); those that are not drawn yet are 0."""
        codes = self._stream[:, self.layout.video_positions(self.total, self._stream.device)] - self.layout.video_offset
        return to_grid(codes.clamp(0, self.config.num_codes - 1), self.grid, self.config.block_shape)

    def drawn(self) -> Tensor:
        """Which codes are there, bool (t, h, w)."""
        return to_grid(torch.arange(self.total)[None] < self.known, self.grid, self.config.block_shape)[0]
