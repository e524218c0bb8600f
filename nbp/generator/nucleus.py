"""Which ids a step may draw: the best by top-k, and of these the nucleus by top-p.

A CPU takes row by row in numpy, which partitions and sorts with SIMD (16,000 of 64,000 in 0.12 ms, `torch.topk` 1.3),
and keeps the places of what is left, a fraction of all ids. A GPU filters all rows at once and is never waited for.
Source: top-p of arXiv 1904.09751. Legend: R rows, V ids that can be drawn, k best ones.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nbp.system.threads import for_each

ROWS_A_THREAD = 8       # at least: waking a thread takes as long as some rows


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None,
                  ties_by_id: bool = False) -> Tensor:
    """Set every id outside top-k and then outside top-p (nucleus) to -inf.

    Ties with the k-th id stay; ties at the edge of the nucleus stay until it is full. Only the k best ids are sorted,
    not the whole vocabulary. What is left of rows with NaN means nothing (`Draft.check` finds them).

    Args:
        logits: float32 (..., V).
        top_k: number of ids, None or 0 for all.
        top_p: probability in [0, 1], None or 1 for all.
        ties_by_id: those at the edge stay in the order of their ids; else in that of `torch.sort`, as in the official
            code, for which a CPU sorts the rows concerned: with logits from bfloat16 that is each of them.

    Returns:
        float32 (..., V), a new tensor unless nothing is filtered.
    """
    if filters_nothing(logits, top_k, top_p):
        return logits
    if logits.device.type != "cpu":
        return _filter_on_gpu(logits, top_k, top_p)
    rows = rows_of(logits)
    kept = np.full_like(rows, -math.inf)
    for row, out, _, last, edge, number in zip(rows, kept, *edges(rows, top_k, top_p)):
        places = places_of(row, edge, int(number)) if ties_by_id else _places_by_sort(row, last, edge, int(number))
        out[places] = row[places]
    return torch.from_numpy(kept).view(logits.shape)


def filters_nothing(logits: Tensor, top_k: int | None, top_p: float | None) -> bool:
    """Whether all ids stay."""
    size = logits.shape[-1]
    return min(int(top_k or size), size) == size and (top_p is None or top_p == 1)


def edges(rows: np.ndarray, top_k: int | None,
          top_p: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of logits (R, V) the best, the k-th best, the last in the nucleus, and how many ids are in it: (R,)
    each."""
    size = rows.shape[1]
    k = min(int(top_k or size), size)
    ranked = np.empty((len(rows), k), rows.dtype)                           # (R, k), in falling order
    count = np.empty((len(rows), 1), np.int64)                              # k, or more with ties

    def rank(index: int) -> None:
        best = np.partition(rows[index], size - k)[size - k:]
        best.sort()
        ranked[index] = best[::-1]
        count[index] = np.count_nonzero(rows[index] >= best[0])

    for_each(rank, len(rows), ROWS_A_THREAD)
    if top_p is None or top_p == 1:
        return ranked[:, 0], ranked[:, -1], ranked[:, -1], count[:, 0]
    edge, number = _nucleus(torch.from_numpy(ranked), torch.from_numpy(count), top_p, int(count.max()))
    return ranked[:, 0], ranked[:, -1], edge[:, 0].numpy(), number[:, 0].numpy()


def places_of(row: np.ndarray, edge: float, number: int) -> np.ndarray:
    """Ids that stay of logits (V,), in rising order: of those tied at the edge the first ones. At least one."""
    places = np.flatnonzero(row >= edge)
    if (late := len(places) - number) > 0:
        cut = np.flatnonzero(row == edge)[-late]
        places = np.concatenate([places[:np.searchsorted(places, cut)], cut + np.flatnonzero(row[cut:] > edge)])
    return places if len(places) else np.zeros(1, np.int64)     # of damaged weights, which `Draft.check` finds


def _places_by_sort(row: np.ndarray, last: float, edge: float, number: int) -> np.ndarray:
    """The same where those tied at the edge stay as `torch.sort` ranks them, which is not stable on a CPU."""
    places = np.flatnonzero(row >= edge)
    if len(places) > number:
        best = torch.from_numpy(np.where(row >= last, row, np.float32(-math.inf)))
        places = np.sort(best.sort(descending=True).indices[:number].numpy())
    return places


def rows_of(logits: Tensor) -> np.ndarray:
    """(..., V) on a CPU -> (R, V), without a copy where it is contiguous."""
    return logits.detach().reshape(-1, logits.shape[-1]).numpy()


def _nucleus(ranked: Tensor, count: Tensor, top_p: float, longest: int) -> tuple[Tensor, Tensor]:
    """Logit of the last id in the nucleus, and how many are in it.

    Args:
        ranked: the best logits in falling order, (..., k).
        count: how many ids are not below the last of them, int64 (..., 1).
        longest: the largest count, or more.

    Returns:
        (float32 (..., 1), int64 (..., 1)).
    """
    last, k = ranked[..., -1:], ranked.shape[-1]
    if longest > k:
        place = torch.arange(longest, device=ranked.device)
        tied = (place >= k) & (place < count)
        ranked = torch.where(tied, last, F.pad(ranked, (0, longest - k), value=-math.inf))
    mass = ranked.softmax(-1).cumsum(-1)
    number = torch.searchsorted(mass, mass.new_full(last.shape, top_p), right=True) + 1
    number = torch.minimum(number, count).clamp_(min=1)                     # NaN has none
    return ranked.gather(-1, number - 1), number


def _filter_on_gpu(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    size = logits.shape[-1]
    ranked = torch.topk(logits, min(int(top_k or size), size), dim=-1).values
    last = ranked[..., -1:]
    if top_p is None or top_p == 1:
        return logits.masked_fill(logits < last, -math.inf)
    edge, number = _nucleus(ranked, torch.count_nonzero(logits >= last, -1)[..., None], top_p, size)
    ties = logits == edge
    late = ties & (ties.cumsum(-1) > number - torch.count_nonzero(logits > edge, -1)[..., None])
    return logits.masked_fill((logits < edge) | late, -math.inf)
