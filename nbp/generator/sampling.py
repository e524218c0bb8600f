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

SERIAL = 2 ** 15        # numbers that torch never divides among threads
COLDEST = 1e-6          # far below what leaves one id, far above what makes logits infinite


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn.

    Attributes:
        greedy: take the most likely id; the other fields are then unused.
        temperature: logits are divided by it, from `COLDEST` on.
        top_k: keep the k most likely ids and any tied with the last; None or 0: off.
        top_p: keep the most likely ids up to and including the one that lifts their sum above p; None or 1: off.
        multinomial: draw with `torch.multinomial`, as the official code, instead of an exponential race.
        lookahead: steps that are drawn in one pass, see `nbp.generator.speculation`; None: as many as cost little more
            than one, or one with `multinomial` or `int8`.
        int8: weights are in 8 bits, where a row depends on the others of its pass.

    Raises:
        ValueError: a value out of range, or a lookahead that would give other clips.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = 16000
    top_p: float | None = 0.9
    multinomial: bool = False
    lookahead: int | None = None
    int8: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a number above 0, got {self.temperature}")
        if self.temperature < COLDEST:
            raise ValueError(f"temperature={self.temperature} is below {COLDEST:g}: greedy takes the most likely id")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k must be a whole number of ids, or 0 or None for no limit, got {self.top_k}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be in [0, 1], or None for no limit, got {self.top_p}")
        steps = 1 if self.lookahead is None else self.lookahead
        if steps != int(steps) or steps < 1:
            raise ValueError(f"lookahead must be a whole number of steps, at least 1, got {steps}")
        if steps > 1 and self.multinomial and not self.greedy:
            raise ValueError(f"lookahead={steps}: this model draws with torch.multinomial, as the official "
                             "code, whose random numbers cannot be fixed beforehand; leave lookahead out")
        if steps > 1 and self.int8:
            raise ValueError(f"lookahead={steps} with int8, whose passes would give other clips: leave one out")

    @property
    def guesses(self) -> bool:
        """Whether a pass may draw several steps."""
        return self.lookahead is None and not (self.multinomial or self.int8) or (self.lookahead or 1) > 1


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None,
                  ties_by_id: bool = False) -> Tensor:
    """Set every id outside top-k and then outside top-p (nucleus) to -inf.

    Ties with the k-th id stay; ties at the edge of the nucleus stay until it is full. Only the k best ids are sorted,
    not the whole vocabulary, and a GPU is never waited for.

    Args:
        logits: float32 (..., V).
        top_k: number of ids, None or 0 for all.
        top_p: probability in [0, 1], None or 1 for all.
        ties_by_id: those at the edge stay in the order of their ids; else in that of `torch.sort`, as in the official
            code, for which a CPU sorts the rows concerned: with logits from bfloat16 that is each of them.

    Returns:
        float32 (..., V), a new tensor unless nothing is filtered.
    """
    size = logits.shape[-1]
    top_k = min(int(top_k or size), size)
    if top_k == size and (top_p is None or top_p == 1):
        return logits
    ranked = _largest(logits, top_k)                                    # (..., k)
    if top_p is None or top_p == 1:
        return _at_least(logits, ranked[..., -1:])
    return _nucleus(logits, ranked, top_p, ties_by_id)


def _largest(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row in falling order, (..., V) -> (..., k)."""
    if logits.device.type != "cpu":
        return torch.topk(logits, k, dim=-1).values
    # On a CPU numpy partitions and sorts with SIMD: 0.2 ms for 16,000 of 64,000, torch.topk needs 1.3 ms.
    size = logits.shape[-1]
    best = np.partition(logits.detach().numpy(), size - k, axis=-1)[..., size - k:]
    best.sort(axis=-1)
    return torch.from_numpy(best).flip(-1)


def _at_least(logits: Tensor, edge: Tensor) -> Tensor:
    """Logits (..., V) with -inf wherever they are below `edge` (..., 1)."""
    if logits.device.type != "cpu":
        return logits.masked_fill(logits < edge, -math.inf)
    # A masked fill branches at every id, which mispredicts: 0.3 ms for 64,000 ids, a threshold 0.04 ms. In parts that
    # torch does not divide among threads, since waking them takes longer.
    kept, size = torch.empty(logits.shape, dtype=logits.dtype), logits.shape[-1]
    below = torch.nextafter(edge, edge.new_tensor(-math.inf)).flatten().tolist()
    for row, out, value in zip(logits.reshape(-1, size), kept.view(-1, size), below):
        for part, kept_part in zip(row.split(SERIAL), out.split(SERIAL)):
            torch.threshold(part, value, -math.inf, out=kept_part)
    return kept


def _count_at_least(logits: Tensor, edge: Tensor) -> Tensor:
    """How many of each row (..., V) are not below `edge` (..., 1): int64 (..., 1)."""
    if logits.device.type != "cpu":
        return torch.count_nonzero(logits >= edge, -1)[..., None]
    # Row by row in numpy, which counts bytes with SIMD: a quarter of the time.
    rows = (logits.detach().numpy() >= edge.detach().numpy()).reshape(-1, logits.shape[-1])
    return torch.tensor([int(np.count_nonzero(row)) for row in rows]).view(edge.shape)


def _nucleus(logits: Tensor, ranked: Tensor, top_p: float, ties_by_id: bool) -> Tensor:
    """Logits (..., V) with -inf outside the nucleus of `ranked` (..., k), the best of them in falling order."""
    last = ranked[..., -1:]
    on_cpu = logits.device.type == "cpu"
    count = _count_at_least(logits, last)                                  # (..., 1): k, or more with ties
    longest = int(count.max()) if on_cpu else logits.shape[-1]             # a GPU would have to be waited for
    row, k = ranked, ranked.shape[-1]
    if longest > k:
        place = torch.arange(longest, device=logits.device)
        row = torch.where((place >= k) & (place < count), last, F.pad(ranked, (0, longest - k), value=-math.inf))
    mass = row.softmax(-1).cumsum(-1)
    number = torch.searchsorted(mass, mass.new_full(last.shape, top_p), right=True) + 1
    number = torch.minimum(number, count).clamp_(min=1)                    # (..., 1) ids in the nucleus; NaN has none
    edge = row.gather(-1, number - 1)
    kept = _at_least(logits, edge)
    rising = row.neg()
    room = number - torch.searchsorted(rising, -edge)                      # (..., 1) ids at the edge that are inside
    if not on_cpu:
        ties = logits == edge
        return kept.masked_fill_(ties & (ties.cumsum(-1) > room), -math.inf)
    crowded = torch.searchsorted(rising, -edge, right=True) > number
    if ties_by_id and crowded.any():
        tied = np.flatnonzero(kept.numpy() == edge.numpy())    # by row, then by id
        rows = tied // kept.shape[-1]
        first = np.searchsorted(rows, np.arange(room.numel()))
        too_late = np.arange(len(rows)) - first[rows] >= room.numpy().reshape(-1)[rows]
        kept.numpy().reshape(-1)[tied[too_late]] = -math.inf
        return kept
    for index in crowded[..., 0].nonzero():
        at = tuple(index)
        late = _at_least(logits[at], last[at]).sort(descending=True).indices[number[at]:]
        kept[at][late] = -math.inf
    return kept


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
    logits = filtered(logits, sampling)
    if sampling.multinomial:
        rows = [_multinomial(row, generator) for row, generator in zip(logits.softmax(-1), generators, strict=True)]
        return torch.stack(rows)
    return winner(logits, uniforms(logits, generators))


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, n, V) as they are drawn from: float32, divided by the temperature, -inf outside top-k and top-p."""
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    return filter_logits(logits, sampling.top_k, sampling.top_p, ties_by_id=not sampling.multinomial)


def winner(logits: Tensor, numbers: Tensor) -> Tensor:
    """Whose arrival is the first, the filtered logits (..., V) taken for log probabilities, with the numbers of
    `uniforms`: ids (...)."""
    if logits.device.type != "cpu":
        times = log_arrivals(numbers)
        return torch.sub(logits, times, out=times).max(-1).indices
    # Numpy's argmax takes a quarter of the time of torch.max. Where few ids are left, only they have times.
    size, inside = logits.shape[-1], logits.numpy() != -math.inf
    if 2 * np.count_nonzero(inside) > inside.size:
        return torch.from_numpy(np.asarray((logits - log_arrivals(numbers)).numpy().argmax(-1)))
    inside[..., 0] |= ~inside.any(-1)                # of damaged weights, for which `Draft.check` has the error
    left = np.flatnonzero(inside)                    # by row, then by id
    times = log_arrivals(numbers.flatten()[left])
    scores = logits.numpy().reshape(-1)[left] - times.numpy()
    bounds = np.searchsorted(left, size * np.arange(logits.shape[:-1].numel() + 1))
    best = [first + int(scores[first:last].argmax()) for first, last in zip(bounds, bounds[1:])]
    return torch.from_numpy(left[best] % size).view(logits.shape[:-1])


def uniforms(like: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Random float32 numbers in [0, 1) of the shape (B, ...) and device of `like`, row i from generator i."""
    numbers = torch.empty(like.shape, device=like.device, dtype=torch.float32)
    for row, generator in zip(numbers, generators, strict=True):
        _fill_uniform(row, generator)
    return numbers


def log_arrivals(numbers: Tensor) -> Tensor:
    """Logarithms of exponential times from numbers of `uniforms`, of the same shape.

    The smallest of the arrival times E/p is that of id i with probability p(i), and so is the largest of log p - log E.
    The times belong to ids, not to ranks or sums, so a rounding difference in the logits almost never changes the
    outcome. At least 32 random bits, as the smallest time decides: 24 of them would let one of 64,000 ids win at every
    250th position whatever its probability.
    """
    # A number of 0 stands for half of the smallest one above it: a time of 0 would win against any probability.
    return numbers.neg().log1p_().neg_().clamp_(min=2.0 ** -33).log_()


def _fill_uniform(row: Tensor, generator: torch.Generator | None) -> None:
    """Write numbers in [0, 1) into a float32 tensor: of the generator, or on a CPU of numpy's SFC64, which takes a
    quarter of the time. Its seed comes from the generator, with the upper half of the generator's own, of which torch
    takes the lower half only on a CPU."""
    device = generator.device if generator is not None else row.device
    below_one = 1 - torch.finfo(row.dtype).eps / 2     # 1 is an infinite time: an id that must not win could
    if device.type != "cpu" or row.device.type != "cpu":
        row.copy_(torch.rand(row.shape, generator=generator, device=device, dtype=torch.float64))
        row.clamp_(max=below_one)
        return
    seed = int(torch.randint(2 ** 62, (), generator=generator))
    upper = (generator or torch.default_generator).initial_seed() >> 32
    raw = np.random.SFC64([seed, upper] if upper else seed).random_raw((row.numel() + 1) // 2)
    np.multiply(raw.view(np.uint32)[:row.numel()].reshape(row.shape), np.float32(2.0 ** -32 * below_one),
                out=row.numpy(), casting="unsafe", dtype=np.float32)


def _multinomial(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """(n, V) -> (n,), on the device of the generator."""
    device = generator.device if generator is not None else probabilities.device
    ids = torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0]
    return ids.to(probabilities.device)
