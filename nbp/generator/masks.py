"""The one attention mask of training, prefill and cached decoding, made from block ids.

Legend: B batch, q query positions, k key positions, C condition tokens.
"""

import torch
from torch import Tensor

from nbp.generator.sequence import Layout


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
