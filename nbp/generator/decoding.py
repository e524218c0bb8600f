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


class Drawing:
    """What becomes of a step's logits (B, m, V): ids (B, m), and a sum that tells whether all were finite.

    Args:
        sampling, generators: as for `sample`.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, generators: Sequence[torch.Generator | None], device: torch.device) -> None:
        self.sampling, self.generators = sampling, generators
        self.sums = torch.zeros((), dtype=torch.float32, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        self.add(logits)
        return sample(logits, self.sampling, self.generators)

    def add(self, logits: Tensor) -> None:
        """Take note of logits that are drawn elsewhere."""
        self.sums += logits.sum(dtype=torch.float32)

    def can_be_recorded(self) -> bool:
        """Whether all of it is computed where the logits are: not so with `torch.multinomial`, or with generators of a
        CPU or another GPU."""
        here = all(generator is None or generator.device == self.sums.device for generator in self.generators)
        return self.sampling.greedy or (here and not self.sampling.multinomial)


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
        self._recorded: dict[tuple[int, int, bool], Recorded] = {}      # new positions, of these m, whether it draws
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
            return self._replayed(ids, first, count)
        x, start = self._embed(ids), 0                                      # (B, n, D)
        if first == 0:
            x = torch.cat([self.prefix.embeddings, x], dim=1)               # (B, C + n, D)
        else:
            start = self.layout.condition_len + first
        mask = attention_mask(self.layout, start, start + x.shape[1], self.prefix.pads, self.pad_visibility, x.device)
        return self._logits(self.transformer(x, mask, self.cache, start)[:, -count:])

    def draw(self, ids: Tensor, first: int, count: int, drawing: Drawing) -> Tensor:
        """The same and what `drawing`, one for all steps, makes of the logits: ids (B, m); replayed as one graph where
        it can be."""
        if first > 0 and self._mask is not None and drawing.can_be_recorded():
            return self._replayed(ids, first, count, drawing)
        return drawing(self(ids, first, count))

    def _replayed(self, ids: Tensor, first: int, count: int, drawing: Drawing | None = None) -> Tensor:
        start, size = self.layout.condition_len + first, ids.shape[1]
        positions = torch.arange(start, start + size, device=ids.device)    # (n,)
        if (kind := (size, count, drawing is not None)) not in self._recorded:
            # Not the method itself: a circle would keep the cache in the GPU's memory until Python looks for circles.
            step = partial(CachedDecoder._whole_cache_step, cast(CachedDecoder, weakref.proxy(self)), count, drawing)
            generators = [] if drawing is None else [generator for generator in drawing.generators if generator]
            self._recorded[kind] = Recorded(step, generators)
        return self._recorded[kind](ids, positions)

    def _whole_cache_step(self, count: int, drawing: Drawing | None, ids: Tensor, positions: Tensor) -> Tensor:
        assert self._mask is not None
        mask = self._mask.index_select(-2, positions)                       # (n, C + length)
        logits = self._logits(self.transformer(self._embed(ids), mask, self.cache, positions)[:, -count:])
        return logits if drawing is None else drawing(logits)

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
        self._drawing = Drawing(sampling, generators, stream.device)
        self._positions, self._first = layout.video_positions(self.total), 0
        # Id of the first one that is scored.
        self._offset = 0 if config.clamp_samples else layout.video_offset

    @torch.inference_mode(False)        # a draft may be begun in it and go on outside
    @torch.no_grad()
    def step(self) -> bool:
        """Draw the next block; False where the clips are complete."""
        if self.known >= self.total:
            return False
        end, count = self.layout.known_positions(self.known), self.layout.next_tokens(self.known)
        ids, decoder = self._stream[:, self._first:end], self.logits_of
        drawn = (decoder.draw(ids, self._first, count, self._drawing) if isinstance(decoder, CachedDecoder) else
                 self._drawing(decoder(ids, self._first, count)))
        start = int(self._positions[self.known])
        self._stream[:, start:start + count] = drawn + self._offset
        self.known += count
        self._first = end
        return True

    def _logits(self, end: int, count: int) -> Tensor:
        """Logits (B, count, V) of the last stream positions before `end`."""
        logits = self.logits_of(self._stream[:, self._first:end], self._first, count)
        self._drawing.add(logits)
        return logits

    def check(self) -> None:
        """ValueError: the model has given NaN or infinity so far, and what was drawn means nothing."""
        if not self._drawing.sums.isfinite():
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
