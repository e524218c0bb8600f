"""From logits to token ids, and the one decoding loop.

Legend: B batch, n tokens of a step, V ids that can be drawn.
"""

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn.

    Attributes:
        greedy: take the most likely id; the other fields are then unused.
        temperature: logits are divided by it, > 0.
        top_k: keep the k most likely ids and any tied with the last; None or 0: off.
        top_p: keep the most likely ids up to and including the one that lifts their sum above p; None or 1: off.
        multinomial: draw with `torch.multinomial`, as the official code, instead of an exponential race.

    Raises:
        ValueError: a value out of range.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: Optional[int] = 16000
    top_p: Optional[float] = 0.9
    multinomial: bool = False

    def __post_init__(self):
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a number above 0, got {self.temperature}")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k must be a whole number of ids, or 0 or None for no limit, got {self.top_k}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1], or None for no limit, got {self.top_p}")


def filter_logits(logits, top_k=None, top_p=None):
    """Set every id outside top-k and then outside top-p (nucleus) to -inf.

    Ties with the k-th id stay; ties at the edge of the nucleus stay in the order of `torch.sort` until it is
    full, as in the official code. Only the k best ids are sorted, not the whole vocabulary.

    Args:
        logits: float32 (..., V).
        top_k: number of ids, None or 0 for all.
        top_p: probability in [0, 1], None or 1 for all.

    Returns:
        float32 (..., V), a new tensor unless nothing is filtered.
    """
    size = logits.shape[-1]
    top_k = min(int(top_k or size), size)
    nucleus = top_p is not None and top_p < 1
    if top_k == size and not nucleus:
        return logits
    ranked = _largest(logits, top_k)
    kept = logits >= ranked[..., -1:]
    if nucleus:
        kept = _nucleus(logits, ranked, kept, top_p)
    return logits.masked_fill(~kept, -math.inf)


def _largest(logits, k):
    """The k largest of each row in falling order, (..., V) -> (..., k)."""
    if logits.device.type != "cpu":
        return torch.topk(logits, k, dim=-1).values
    # On a CPU numpy partitions and sorts with SIMD: 0.3 ms for 16,000 of 64,000, torch.topk needs 1.9 ms.
    head = np.partition(-logits.detach().numpy(), k - 1, axis=-1)[..., :k]
    head.sort(axis=-1)
    return -torch.from_numpy(head)


def _nucleus(logits, ranked, kept, top_p):
    """Which of the `kept` logits (..., V) are in the nucleus; `ranked` are the best of them, in falling order."""
    size, count = logits.shape[-1], kept.sum(-1, keepdim=True)
    place = torch.arange(size, device=logits.device)
    # In full length, so that the softmax rounds as one over the whole sorted row does.
    row = F.pad(ranked, (0, size - ranked.shape[-1]), value=-math.inf)
    if (count > ranked.shape[-1]).any():                  # ties with the k-th
        row = torch.where((place >= ranked.shape[-1]) & (place < count), ranked[..., -1:], row)
    mass = row.softmax(-1).cumsum(-1)
    number = torch.minimum((mass[..., :-1] <= top_p).sum(-1, keepdim=True) + 1, count)
    inside = logits >= row.gather(-1, number - 1)
    if (inside.sum(-1, keepdim=True) > number).any():     # ties that do not all fit: rare, and worth a full sort
        order = torch.sort(logits.masked_fill(~kept, -math.inf), dim=-1, descending=True).indices
        inside = torch.zeros_like(kept).scatter(-1, order, place < number)
    return inside


def row_generators(generator, batch, keep_single=False):
    """One random stream per clip, so that a clip does not depend on the others in its batch.

    Args:
        generator: a list of `batch` torch.Generator, one torch.Generator that seeds them, or None for the
            global one. Clips drawn with one generator in batches of 4 or one by one come out the same.
        keep_single: with a batch of 1 use `generator` itself instead of seeding another from it.

    Returns:
        List of `batch` torch.Generator (or [None] for the global one).

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch:
            raise ValueError(f"generator: {len(generator)} generators for a batch of {batch}")
        return list(generator)
    if keep_single and batch == 1:
        return [generator]
    device = generator.device if generator is not None else "cpu"
    seeds = [int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(batch)]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def sample(logits, sampling, generators):
    """Draw ids.

    Args:
        logits: (B, n, V).
        sampling: `Sampling`.
        generators: one torch.Generator per row of the batch; unused when greedy.

    Returns:
        int64 (B, n).
    """
    if sampling.greedy:
        return logits.argmax(-1)
    logits = filter_logits(logits.float() / sampling.temperature, sampling.top_k, sampling.top_p)
    if sampling.multinomial:
        rows = [_multinomial(row, generator) for row, generator in zip(logits.softmax(-1), generators)]
        return torch.stack(rows)
    # The smallest of exponential arrival times E/p is id i with probability p(i). The times belong to ids,
    # not to ranks or sums, so a rounding difference in the logits almost never changes the outcome.
    arrival = torch.stack([_exponential(row, generator) for row, generator in zip(logits, generators)])
    return (logits - arrival.log_()).argmax(-1)


def _multinomial(probabilities, generator):
    """(n, V) -> (n,), on the device of the generator."""
    device = generator.device if generator is not None else probabilities.device
    ids = torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0]
    return ids.to(probabilities.device)


def _exponential(like, generator):
    """Exponential times of the shape and device of `like`; 53 random bits, since the smallest time decides."""
    uniform = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return uniform.to(like).neg_().log1p_().neg_().clamp_(min=torch.finfo(like.dtype).tiny)


def decode(logits_of, stream, layout, known, total, sampling, generators, offset):
    """Fill a stream step by step.

    Args:
        logits_of: function (ids (B, n) of new stream positions, first position, m) -> logits (B, m, V) of
            the last m of them.
        stream: token ids (B, positions) from `Layout.stream`, the first `known` video tokens in place; filled
            in place.
        layout: `Layout`.
        known, total: number of video tokens given, and wanted.
        sampling, generators: as for `sample`.
        offset: token id of the first id that `logits_of` scores.
    """
    positions = layout.video_positions(total)
    first = 0
    while known < total:
        end, count = layout.known_positions(known), layout.next_tokens(known)
        ids = sample(logits_of(stream[:, first:end], first, count), sampling, generators)
        start = int(positions[known])
        stream[:, start:start + count] = ids + offset
        known += count
        first = end
