"""From logits to token ids.

Legend: B batch, n tokens of a step, V ids that can be drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
    top_k: int | None = 16000
    top_p: float | None = 0.9
    multinomial: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a number above 0, got {self.temperature}")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k must be a whole number of ids, or 0 or None for no limit, got {self.top_k}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1], or None for no limit, got {self.top_p}")


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
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
    if top_k == size and (top_p is None or top_p == 1):
        return logits
    ranked = _largest(logits, top_k)
    kept = logits >= ranked[..., -1:]
    if top_p is not None and top_p < 1:
        kept = _nucleus(logits, ranked, kept, top_p)
    return logits.masked_fill(~kept, -math.inf)


def _largest(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row in falling order, (..., V) -> (..., k)."""
    if logits.device.type != "cpu":
        return torch.topk(logits, k, dim=-1).values
    # On a CPU numpy partitions and sorts with SIMD: 0.3 ms for 16,000 of 64,000, torch.topk needs 1.9 ms.
    head = np.partition(-logits.detach().numpy(), k - 1, axis=-1)[..., :k]
    head.sort(axis=-1)
    return -torch.from_numpy(head)


def _nucleus(logits: Tensor, ranked: Tensor, kept: Tensor, top_p: float) -> Tensor:
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


def row_generators(generator: torch.Generator | Sequence[torch.Generator] | None, batch: int,
                   keep_single: bool = False, device: str | torch.device = "cpu") -> list[torch.Generator | None]:
    """One random stream per clip, so that a clip does not depend on the others in its batch.

    Args:
        generator: a list of `batch` torch.Generator, one torch.Generator that seeds them, or None for the
            global one. Clips drawn with one generator in batches of 4 or one by one come out the same.
        batch: number of clips.
        keep_single: with a batch of 1 use `generator` itself instead of seeding another from it.
        device: of the streams that the global generator seeds; those of another are on its device.

    Returns:
        List of `batch` torch.Generator (or [None] for the global one).

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise ValueError(f"generator: {len(generator)} generators for a batch of {batch}")
        return list(generator)
    if keep_single and batch == 1:
        return [generator]
    source = generator.device if generator is not None else torch.device("cpu")
    seeds = [int(torch.randint(2**62, (), generator=generator, device=source)) for _ in range(batch)]
    return [torch.Generator(source if generator is not None else device).manual_seed(seed) for seed in seeds]


def sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator | None] = ()) -> Tensor:
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


def _multinomial(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """(n, V) -> (n,), on the device of the generator."""
    device = generator.device if generator is not None else probabilities.device
    ids = torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0]
    return ids.to(probabilities.device)


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exponential times of the shape and device of `like`; 53 random bits, since the smallest time decides."""
    device = generator.device if generator is not None else like.device
    uniform = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float64)
    return uniform.to(like).neg_().log1p_().neg_().clamp_(min=torch.finfo(like.dtype).tiny)
