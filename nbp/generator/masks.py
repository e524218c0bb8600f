"""The one attention mask of training, prefill and cached decoding, made from block ids.

Legend: B batch, q query positions, k key positions, C condition tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nbp.generator.sequence import Layout

QUERIES = 256        # of a span


class Span(NamedTuple):
    """Queries first..last-1, none of which sees key `keys` or a later one, and their mask (..., last - first, keys)."""

    first: int
    last: int
    keys: int
    mask: Tensor


def visible(query_blocks: Tensor, key_blocks: Tensor) -> Tensor:
    """bool (q, k): a query sees every key whose block id is not larger than its own."""
    return query_blocks[:, None] >= key_blocks[None, :]


def attention_mask(layout: Layout, start: int, end: int, hidden: Tensor | None = None, pad_visibility: str = "never",
                   device: torch.device | None = None) -> Tensor | None:
    """Mask of queries start..end-1 over keys 0..end-1 of [condition | stream].

    Args:
        layout: `Layout`.
        start, end: positions; keys before `start` come from the cache.
        hidden: bool (B, C), condition tokens that only fill up, or None.
        pad_visibility: "never" hides them from every query; "causal" shows them to later positions and
            "decoding" to every query of a step that reads the cache, as the official models do.

    Returns:
        bool (q, k) or (B, 1, q, k), True where attention is allowed; None where everything is.
    """
    blocks = layout.block_ids(end)
    one_block = bool(blocks[start] == blocks[-1])          # ids never fall along the sequence
    if hidden is None or (pad_visibility == "decoding" and start > 0):
        return None if one_block else visible(blocks[start:], blocks).to(device)
    shown = torch.ones(len(hidden), 1, end, dtype=torch.bool, device=device)
    shown[:, 0, 1:layout.condition_len] = ~hidden[:, 1:]   # never all: a row without a key has no softmax
    if pad_visibility == "causal":
        position = torch.arange(end, device=device)
        shown = shown | visible(position[start:], position)
    return (shown & visible(blocks[start:], blocks).to(device))[:, None]


def in_spans(mask: Tensor | None, blocks: Tensor) -> list[Span] | Tensor | None:
    """A whole sequence's mask, (n, n) or (B, 1, n, n), as spans of queries: hidden keys behind a span cost nothing.

    Gives the same attention up to the order of sums, for 1,280 tokens in two thirds of the time (two AVX2 cores). A
    mask of few queries, and None, stay as they are.

    Args:
        mask: of `attention_mask`, from position 0.
        blocks: block ids (n,), on the CPU.
    """
    if mask is None or len(blocks) < 2 * QUERIES:
        return mask
    spans = []
    for first in range(0, len(blocks), QUERIES):
        last = min(first + QUERIES, len(blocks))
        keys = int((blocks <= blocks[last - 1]).sum())
        spans.append(Span(first, last, keys, mask[..., first:last, :keys]))
    return spans
