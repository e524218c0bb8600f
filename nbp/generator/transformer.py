"""Pre-LN decoder-only transformer: embeddings, layers, KV cache, one forward for training and decoding.

Legend: B batch, n positions of this call, S positions of the cache, D width, H heads.
"""

from typing import TypeAlias

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nbp.config import GeneratorConfig
from nbp.generator import attention
from nbp.generator.masks import Span
from nbp.generator.rotary import places, rotate, rotations
from nbp.generator.sequence import Layout

Mask: TypeAlias = Tensor | list[Span] | None


class KVCache:
    """Keys and values of every layer, allocated once at the first use and written by position.

    Args:
        num_layers: number of layers.
        length: S, the longest sequence that will be decoded.
    """

    def __init__(self, num_layers: int, length: int) -> None:
        self.length = length
        # (2, B, H, S, D/H) each: keys, values. Packed layers keep theirs in another layout (`packed.py`).
        self.entries: list[Tensor | None] = [None] * num_layers

    def update(self, layer: int, start: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, D/H) and return views of what queries may read.

        Positions are start.., and all positions so far are returned; or `start` is a tensor of positions (n,), and the
        whole cache is returned, of which the mask hides what is not written yet.
        """
        entry = self.entries[layer]
        if entry is None:
            batch, heads, _, size = keys.shape
            entry = self.entries[layer] = keys.new_zeros(2, batch, heads, self.length, size)
        if isinstance(start, Tensor):
            entry[0].index_copy_(2, start, keys)
            entry[1].index_copy_(2, start, values)
            return entry[0], entry[1]
        end = start + keys.shape[2]
        entry[0, :, :, start:end] = keys
        entry[1, :, :, start:end] = values
        return entry[0, :, :, :end], entry[1, :, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Mask, cache: KVCache | None, layer: int, start: int | Tensor,
                turn: Tensor | None = None) -> Tensor:
        """(B, n, D) -> (B, n, D); with a cache the n positions, from `start` on, also see those it holds of `layer`."""
        projected = self.qkv(x)                                                   # (B, n, 3D)
        if isinstance(mask, list) and attention.in_cpp(projected, self.num_heads):
            return self.drop(self.proj(attention.attend(projected, self.num_heads, mask, turn)))
        # Plain views, since einops takes as long as a small step's attention: (B, n, 3D) -> three of (B, H, n, D/H)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        if cache is not None:
            key, value = cache.update(layer, start, key, value)
        # query (B, H, n, D/H); key and value of all positions so far
        if isinstance(mask, list):
            parts = [F.scaled_dot_product_attention(
                query[:, :, first:last], key[:, :, :keys], value[:, :, :keys], attn_mask=part)
                for first, last, keys, part in mask]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.drop(self.proj(out.transpose(1, 2).flatten(2)))


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with an exact GELU."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, config.num_heads, config.dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width),
                                 nn.Dropout(config.dropout))

    def forward(self, x: Tensor, mask: Mask, cache: KVCache | None, layer: int, start: int | Tensor,
                turn: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, cache, layer, start, turn)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Embedded tokens in, normalised hidden states out; positions are learned and absolute."""

    turns: Tensor | None

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.activation_checkpointing = config.activation_checkpointing
        self.position_embedding = nn.Parameter(torch.empty(1, config.max_seq_len, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm: nn.Module = nn.LayerNorm(config.width)
        turns = None
        if config.rotary:
            where = places(Layout(config), config.grid, config.block_shape, config.max_seq_len)
            turns = rotations(where, config.width // config.num_heads)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x: Tensor, mask: Mask, cache: KVCache | None = None, start: int | Tensor = 0) -> Tensor:
        """Run all layers.

        Args:
            x: token embeddings float (B, n, D) of positions start .. start+n-1.
            mask: bool (n, start+n) or (B, 1, n, start+n), True where attention is allowed; None: everywhere; or the
                spans of such a mask (`nbp.generator.masks.span_masks`), without a cache.
            cache: `KVCache` that holds positions 0 .. start-1 and takes the new ones, or None with start=0.
            start: position of x[:, 0]; or the positions of all of x, int64 (n,), and the mask spans the whole cache.

        Returns:
            float (B, n, D).
        """
        positions = start if isinstance(start, Tensor) else slice(start, start + x.shape[1])
        x = self.drop(x + self.position_embedding[:, positions])
        turn = None if self.turns is None else self.turns[:, positions]
        for index, layer in enumerate(self.layers):
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, mask, cache, index, start, turn, use_reentrant=False)
            else:
                x = layer(x, mask, cache, index, start, turn)
        return self.norm(x)
