"""Cached decoding: logits of new positions from the keys and values of old ones, and the loop that fills a clip.

Legend: B batch, n new positions, m of them that predict, C condition tokens, D width, V ids that can be drawn.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.generator.arguments import Prefix
from nbp.generator.cuda_graph import Recorded, can_record
from nbp.generator.masks import attention_mask
from nbp.generator.sampling import Sampling, sample
from nbp.generator.sequence import Layout
from nbp.generator.transformer import KVCache, Transformer


class CachedDecoder:
    """Step function for `decode`: new stream ids -> logits over the ids that may be drawn.

    With guidance, rows 0..B-1 of what the transformer sees are the conditional clips and B..2B-1 the same clips
    without a condition. Steps that are replayed as CUDA graphs (see `can_record`) read the whole cache, so that they
    have fixed shapes; the mask hides what is not written yet.

    Args:
        transformer, embedding, head: of the model; `head` has one row (D,) for each id that may be drawn.
        layout: its `Layout`.
        prefix: condition of the clips, and behind them, with guidance, of the unconditional ones.
        length: stream positions that will be decoded.
        pad_visibility: see `attention_mask`.
        cfg_scale: uncond + scale * (cond - uncond); None: no guidance.
    """

    def __init__(self, transformer: Transformer, embedding: nn.Embedding, head: Tensor, layout: Layout, prefix: Prefix,
                 length: int, pad_visibility: str, cfg_scale: float | None) -> None:
        self.transformer, self.embedding, self.head = transformer, embedding, head
        self.layout, self.prefix = layout, prefix
        self.pad_visibility, self.cfg_scale = pad_visibility, cfg_scale
        self.cache = KVCache(len(transformer.layers), layout.condition_len + length)
        self._mask: Tensor | None = None                # of all positions, for steps that are replayed
        self._recorded: dict[int, Recorded] = {}        # number of new positions -> step
        if can_record(prefix.embeddings):
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
            self._recorded[size] = Recorded(self._whole_cache_step)
        return self._recorded[size](ids, positions)

    def _whole_cache_step(self, ids: Tensor, positions: Tensor) -> Tensor:
        assert self._mask is not None
        mask = self._mask.index_select(-2, positions)                       # (n, C + length)
        return self._logits(self.transformer(self._embed(ids), mask, self.cache, positions))

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x if self.cfg_scale is None else torch.cat([x, x])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.head).float()
        if self.cfg_scale is None:
            return logits
        conditional, free = logits.chunk(2)
        return free + self.cfg_scale * (conditional - free)


def decode(logits_of: Callable[[Tensor, int, int], Tensor], stream: Tensor, layout: Layout, known: int, total: int,
           sampling: Sampling, generators: Sequence[torch.Generator | None], offset: int) -> None:
    """Fill a stream step by step.

    Args:
        logits_of: gives the logits of each step, as a `CachedDecoder` does.
        stream: token ids (B, positions) from `Layout.stream`, the first `known` video tokens in place; filled
            in place.
        layout: the model's.
        known, total: number of video tokens given, and wanted.
        sampling, generators: as for `sample`.
        offset: token id of the first id that `logits_of` scores.
    """
    positions = layout.video_positions(total)
    first = 0
    while known < total:
        end, count = layout.known_positions(known), layout.next_tokens(known)
        ids = sample(logits_of(stream[:, first:end], first, count), sampling, generators)     # (B, m)
        start = int(positions[known])
        stream[:, start:start + count] = ids + offset
        known += count
        first = end
