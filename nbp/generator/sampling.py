"""From logits to token ids.

Legend: B batch, n tokens of a step, V ids that can be drawn.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbp.generator.native import library
from nbp.generator.nucleus import ROWS_A_THREAD, edges, filter_logits, filters_nothing, places_of, rows_of
from nbp.system.threads import for_each

COLDEST = 1e-6          # far below what leaves one id, far above what makes logits infinite
EARLY = 2.0 ** -8        # numbers below it win mostly, where many ids are left
BELOW_ONE = 1 - 2.0 ** -24      # the largest float32: 1 is an infinite time, and an id that must not win could


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
            than one, or one with `int8`, or with `multinomial` where the model is not packed.
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
                             "code, and guesses by itself where that changes no token; leave lookahead out")
        if steps > 1 and self.int8:
            raise ValueError(f"lookahead={steps} with int8, whose passes would give other clips: leave one out")

    @property
    def guesses(self) -> bool:
        """Whether a pass may draw several steps of any model."""
        return self.lookahead is None and not (self.multinomial or self.int8) or (self.lookahead or 1) > 1


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
    on_cpu = all(generator is None or generator.device.type == "cpu" for generator in generators)
    if sampling.multinomial and not (on_cpu and logits.device.type == "cpu"):
        kept = filter_logits(tempered(logits, sampling), sampling.top_k, sampling.top_p)
        rows = [_multinomial(row, generator) for row, generator in zip(kept.softmax(-1), generators, strict=True)]
        return torch.stack(rows)
    return race(logits, random_numbers(logits, generators, sampling), sampling)


def tempered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits in float32, divided by the temperature."""
    return logits.float() / sampling.temperature if sampling.temperature != 1 else logits.float()


def race(logits: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """Which of the ids that the filters leave arrives first: ids int64 (...) of logits (..., V), with the numbers of
    `random_numbers`, of the same shape. A GPU is not waited for."""
    if not logits.numel():
        return torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    logits, filters = tempered(logits, sampling), (sampling.top_k, sampling.top_p)
    if sampling.multinomial:
        return filter_logits(logits, *filters).softmax(-1).div_(numbers).argmax(-1)
    if logits.device.type == "cpu" and (found := _cpp()) is not None:
        return _race_in_cpp(found, logits.detach().contiguous(), numbers.contiguous(), *filters)
    if logits.device.type != "cpu" or filters_nothing(logits, *filters):
        times = log_arrivals(numbers)
        scores = torch.sub(filter_logits(logits, *filters), times, out=times)
        if scores.device.type != "cpu":
            return scores.max(-1).indices
        return torch.from_numpy(np.asarray(scores.numpy().argmax(-1)))      # in a quarter of the time
    return torch.from_numpy(_first_arrivals(rows_of(logits), rows_of(numbers), *filters)).view(logits.shape[:-1])


def _cpp() -> ctypes.CDLL | None:
    """`native/draw.cpp` where it is built for this processor."""
    return library.of(torch.float32)


def _race_in_cpp(found: ctypes.CDLL, logits: Tensor, numbers: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The same in a quarter of the time."""
    if numbers.shape != logits.shape or (numbers.device, numbers.dtype) != (logits.device, logits.dtype):
        raise RuntimeError(f"random numbers must be as the logits, {tuple(logits.shape)} in {logits.dtype} on a CPU, "
                           f"got {tuple(numbers.shape)} in {numbers.dtype} on {numbers.device}")
    size, ids = logits.shape[-1], logits.new_empty(logits.shape[:-1], dtype=torch.int64)
    found.draw(logits.data_ptr(), numbers.data_ptr(), ids.numel(), size, min(int(top_k or size), size),
               1.0 if top_p is None else top_p, torch.get_num_threads(), ids.data_ptr())
    return ids


def _first_arrivals(rows: np.ndarray, numbers: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The same of rows (R, V) on a CPU, int64 (R,): only ids that are left have times."""
    best, _, edge, number = edges(rows, top_k, top_p)

    def early(index: int) -> np.ndarray:
        places = np.flatnonzero(numbers[index] < EARLY)
        values = rows[index][places]
        # Which of those tied at the edge stay is not asked here.
        return places[:0] if (values == edge[index]).any() else places[values > edge[index]]

    ids, scores = _winners(rows, numbers, np.arange(len(rows)), early)
    # No other id scores more than the best one would with a number of EARLY, whose time is at least as long.
    rest = np.flatnonzero(~(scores > best - math.log(EARLY) + 1e-3))
    if len(rest):
        ids[rest], _ = _winners(rows, numbers, rest,
                                lambda index: places_of(rows[index], edge[index], int(number[index])))
    return ids


def _winners(rows: np.ndarray, numbers: np.ndarray, indices: np.ndarray,
             chosen: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows the first of the ids that `chosen` gives, int64 (r,), and its score; -inf where there is none."""
    places, values, left = ([np.empty(0)] * len(indices) for _ in range(3))

    def gather(place: int) -> None:
        index = int(indices[place])
        here = places[place] = chosen(index)
        values[place], left[place] = rows[index][here], numbers[index][here]

    for_each(gather, len(indices), ROWS_A_THREAD)
    scores = np.concatenate(values) - log_arrivals(torch.from_numpy(np.concatenate(left))).numpy()
    ids, best = np.zeros(len(indices), np.int64), np.full(len(indices), -math.inf, np.float32)
    ends = np.cumsum([len(here) for here in places])
    for place, (here, end) in enumerate(zip(places, ends)):
        if len(here):
            winner = scores[end - len(here):end].argmax()
            ids[place], best[place] = here[winner], scores[end - len(here) + winner]
    return ids, best


def random_numbers(like: Tensor, generators: Sequence[torch.Generator | None], sampling: Sampling) -> Tensor:
    """What `race` draws by: `uniforms`, or the exponential times by which `torch.multinomial` divides probabilities on
    a CPU, for the largest to win (aten/src/ATen/native/Distributions.cpp)."""
    if not sampling.multinomial:
        return uniforms(like, generators)
    times = torch.empty(like.shape, dtype=torch.float32, device="cpu")
    for row, generator in zip(times, generators, strict=True):
        row.exponential_(generator=generator)
    return times


def uniforms(like: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Random float32 numbers in [0, 1) of the shape (B, ...) and device of `like`, row i from generator i."""
    numbers = torch.empty(like.shape, device=like.device, dtype=torch.float32)
    clips = list(zip(numbers, generators, strict=True))
    if {numbers.device.type} | {generator.device.type for generator in generators if generator is not None} == {"cpu"}:
        streams = [_stream(generator) for generator in generators]
        rows = [row.numpy() for row, _ in clips]
        found = _cpp()
        for_each(lambda index: _fill(rows[index], streams[index], found), len(rows))
        return numbers
    for row, generator in clips:
        device = generator.device if generator is not None else row.device
        row.copy_(torch.rand(row.shape, generator=generator, device=device, dtype=torch.float64))
    return numbers.clamp_(max=BELOW_ONE)


def log_arrivals(numbers: Tensor) -> Tensor:
    """Logarithms of exponential times from numbers of `uniforms`, of the same shape.

    The smallest of the arrival times E/p is that of id i with probability p(i), and so is the largest of log p - log E.
    The times belong to ids, not to ranks or sums, so a rounding difference in the logits almost never changes the
    outcome. At least 32 random bits, as the smallest time decides: 24 of them would let one of 64,000 ids win at every
    250th position whatever its probability.
    """
    # A number of 0 stands for half of the smallest one above it: a time of 0 would win against any probability.
    return numbers.neg().log1p_().neg_().clamp_(min=2.0 ** -33).log_()


def _stream(generator: torch.Generator | None) -> np.random.SFC64:
    """Random bits for a step: numpy's SFC64 takes a quarter of the time of torch's generator. Its seed comes from the
    generator, with the upper half of the generator's own, of which torch takes the lower half only on a CPU."""
    seed = int(torch.randint(2 ** 62, (), generator=generator))
    upper = (generator or torch.default_generator).initial_seed() >> 32
    return np.random.SFC64([seed, upper] if upper else seed)


def _fill(row: np.ndarray, stream: np.random.SFC64, found: ctypes.CDLL | None) -> None:
    """Write random numbers in [0, 1) into a contiguous float32 array, by the C++ where it is given."""
    if found is not None:
        state = stream.state["state"]["state"]          # uint64 (4,)
        found.fill(state.ctypes.data, row.size, 2.0 ** -32 * BELOW_ONE, row.ctypes.data)
        return
    raw = stream.random_raw((row.size + 1) // 2)
    np.multiply(raw.view(np.uint32)[:row.size].reshape(row.shape), np.float32(2.0 ** -32 * BELOW_ONE), out=row,
                casting="unsafe", dtype=np.float32)


def _multinomial(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """(n, V) -> (n,), on the device of the generator."""
    device = generator.device if generator is not None else probabilities.device
    ids = torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0]
    return ids.to(probabilities.device)
