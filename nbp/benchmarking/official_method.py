"""What the official code does at each step, written plainly on our weights: the other side of every comparison.

Separate products for query, key and value; lists of caches that grow by concatenation; dense float masks; logits of all
ids in float32; top-k, a full sort and one multinomial draw per position. For one clip on a CPU it draws the tokens of
`Generator.generate` with `multinomial`, and its loss is that of `Generator.loss` up to rounding.
Legend: B batch, n positions of this call, S positions so far, D width, H heads, P predicted tokens, V ids.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nbp.generator.model import Generator
from nbp.generator.sequence import to_grid
from nbp.generator.transformer import Attention, TransformerLayer

Caches = list[tuple[Tensor, Tensor]]      # keys and values (B, H, S, D/H) of every layer


@torch.inference_mode()
def generate(model: Generator, condition: Tensor | None = None, prefix: Tensor | None = None, top_k: int = 16000,
             top_p: float = 0.9, generator: torch.Generator | None = None, batch: int = 1) -> Tensor:
    """Clips, with arguments as for `Generator.generate`; a model with a condition needs one.

    Args:
        batch: number of clips where neither condition nor prefix says.

    Returns:
        Video codes int64 (B, t, h, w).
    """
    config, layout, total = model.config, model.layout, math.prod(model.config.grid)
    batch = len(condition) if condition is not None else len(prefix) if prefix is not None else batch
    given = prefix.flatten(1) if prefix is not None else torch.empty(batch, 0, dtype=torch.long)
    known = given.shape[1]
    device = model.head.weight.device
    stream = layout.stream(F.pad(given.to(device), (0, total - known)))
    mask = dense_mask(model, layout.num_inputs(total)).to(device)
    positions, first, caches = layout.video_positions(total), 0, None
    while known < total:
        end, count = layout.known_positions(known), layout.next_tokens(known)
        hidden, caches = run_layers(model, embed(model, stream[:, first:end], first, condition), mask, caches)
        scores = logits_of(model, hidden)[:, -count:]
        for place in range(count):
            row = nucleus(top_k_only(scores[:, place], top_k), top_p)
            drawn = torch.multinomial(row.softmax(-1), 1, generator=generator)
            stream[:, positions[known] + place] = drawn[:, 0] + (0 if config.clamp_samples else layout.video_offset)
        known, first = known + count, end
    return to_grid((stream[:, positions] - layout.video_offset).clamp(0, config.num_codes - 1), config.grid,
                   config.block_shape)


def loss(model: Generator, codes: Tensor, condition: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood of video codes (B, t, h, w), as `Generator.loss` without dropout."""
    layout = model.layout
    length = layout.num_inputs(codes[0].numel())
    ids = layout.stream(codes.flatten(1))[:, :length]
    hidden, _ = run_layers(model, embed(model, ids, 0, condition), dense_mask(model, length).to(ids.device), None)
    scores = model.head(hidden[:, layout.condition_len:]).float()                         # (B, P, V)
    target = model.targets(codes) + (layout.video_offset if model.config.full_head else 0)
    return F.cross_entropy(scores.flatten(0, 1), target.flatten())


def dense_mask(model: Generator, length: int) -> Tensor:
    """float32 (S, S) of the condition and `length` stream positions: 1 where a query (row) may see a key."""
    blocks = model.layout.block_ids(model.layout.condition_len + length)
    return (blocks[:, None] >= blocks[None, :]).float()


def embed(model: Generator, ids: Tensor, first: int, condition: Tensor | None) -> Tensor:
    """Embeddings (B, n, D) of stream ids from position `first` on, the condition in front of the first ones."""
    x, start = model.token_embedding(ids), first + model.layout.condition_len
    if first == 0:
        start = 0
        if condition is not None:
            x = torch.cat([model.token_embedding(condition + model.layout.condition_offset), x], dim=1)
    return x + model.transformer.position_embedding[:, start:start + x.shape[1]]


def run_layers(model: Generator, x: Tensor, mask: Tensor, caches: Caches | None) -> tuple[Tensor, Caches]:
    """Hidden states (B, n, D) and the caches, longer by n."""
    grown = []
    for number, layer in enumerate(model.transformer.layers):
        assert isinstance(layer, TransformerLayer)
        out, cache = attend(layer.attention, layer.norm1(x), mask, caches[number] if caches is not None else None)
        x = x + out
        x = x + layer.mlp(layer.norm2(x))
        grown.append(cache)
    return model.transformer.norm(x), grown


def attend(attention: Attention, x: Tensor, mask: Tensor,
           cache: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention with a matrix of all weights (B, H, n, S)."""
    batch, size, width = x.shape
    query, key, value = (F.linear(x, weight, bias).view(batch, size, attention.num_heads, -1).transpose(1, 2)
                         for weight, bias in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)))
    if cache is not None:
        key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
    end = key.shape[2]
    weights = query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])
    weights = weights.masked_fill(mask[end - size:end, :end] == 0, -math.inf).softmax(-1)
    out = (weights @ value).transpose(1, 2).reshape(batch, size, width)
    return attention.proj(out), (key, value)


def logits_of(model: Generator, hidden: Tensor) -> Tensor:
    """float32 (B, n, V) over the ids that the model draws from."""
    scores = model.head(hidden).float()
    if model.config.full_head and not model.config.clamp_samples:
        scores = scores[..., model.layout.video_offset:model.layout.video_offset + model.config.num_codes]
    return scores


def top_k_only(scores: Tensor, top_k: int) -> Tensor:
    """(B, V) with -inf below the k-th largest of each row."""
    worst = torch.topk(scores, min(top_k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < worst, -math.inf)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """(B, V) with -inf behind the id, in falling order, that lifts the sum of probabilities above p."""
    ranked, order = torch.sort(scores, descending=True)
    outside = ranked.softmax(-1).cumsum(-1) > top_p
    outside = F.pad(outside[:, :-1], (1, 0), value=False)
    return scores.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -math.inf)
