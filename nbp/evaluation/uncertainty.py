"""How far a Frechet distance can be trusted: resampling, folds, and the limit of infinitely many clips.

Legend: N clips, D features.
"""

import warnings

import numpy as np
from typing_extensions import NotRequired, TypedDict

from nbp.evaluation.fvd import MIN_CLIPS, feature_stats, stats_distance


class SampleCurve(TypedDict):
    """Distance against the number of clips, and the line fvd = infinite + slope / clips through it."""

    clips: list[int]
    fvd: list[float]
    slope: float
    infinite: float
    notes: NotRequired[list[str]]   # what is to be said of the limit


def uncertainty(real: np.ndarray, fake: np.ndarray, seed: int = 0, repeats: int = 1,
                paired: bool = False) -> dict[str, float | list[float]]:
    """All measures of this module for features (N,D) and (M,D), each left out where the sets are too small for it. For
    `repeats` see `bootstrap_interval`; the other measures pool them. Where row i of both belongs to one video
    (`paired`, as of reconstructions) it is drawn for both or for neither: sets of other videos are further apart."""
    scores: dict[str, float | list[float]] = {}
    smallest = min(len(real), len(fake))
    scores["fvd_interval_95"] = bootstrap_interval(real, fake, seed=seed, repeats=repeats, paired=paired)
    if smallest >= 5 * MIN_CLIPS:
        scores["fvd_folds_mean"], scores["fvd_folds_deviation"] = fold_deviation(real, fake, seed=seed,
                                                                                       paired=paired)
        scores["fvd_infinite"] = sample_curve(real, fake, seed=seed, paired=paired)["infinite"]
    if len(real) >= 2 * MIN_CLIPS:
        # Two random halves of the real set: what sampling alone costs at half of its size.
        order, middle = np.random.default_rng(seed).permutation(len(real)), len(real) // 2
        scores["fvd_real_halves"] = _distance(real[order[:middle]], real[order[middle:]])
    return scores


def _distance(real: np.ndarray, *parts: np.ndarray) -> float:
    """Frechet distance, as the mean over parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = feature_stats(real)
        return float(np.mean([stats_distance(stats, feature_stats(part)) for part in parts]))


def bootstrap_interval(real: np.ndarray, fake: np.ndarray, num_draws: int = 50, level: float = 0.95, seed: int = 0,
                       repeats: int = 1, paired: bool = False) -> list[float]:
    """Interval [low, high], low not below 0, of the distance over resampled sets, centred on the distance itself.

    Resampling with replacement raises a Frechet distance (it lowers the number of distinct clips), so only the spread
    of the draws is used, not their mean. `fake` is `repeats` sets of equal size, one behind the other; the distance is
    the mean over them, and each is resampled on its own. `level` is the share of the draws inside.
    """
    rng = np.random.default_rng(seed)
    parts = np.split(fake, repeats)
    draws = []
    for _ in range(num_draws):
        drawn = [rng.integers(len(x), size=len(x)) for x in ((real,) if paired else (real, *parts))]
        draws.append(_distance(*(x[numbers] for x, numbers in zip((real, *parts), drawn * (2 if paired else 1)))))
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
    distance = _distance(real, *parts)
    return [max(0.0, float(distance + low - middle)), float(distance + high - middle)]


def fold_deviation(real: np.ndarray, fake: np.ndarray, num_folds: int = 5, seed: int = 0,
                   paired: bool = False) -> tuple[float, float]:
    """Mean and standard deviation of the distance over disjoint fifths of both sets (higher than the whole's: bias)."""
    rng = np.random.default_rng(seed)
    first = rng.permutation(len(real))
    second = first if paired else rng.permutation(len(fake))
    distances = [_distance(real[a], fake[b]) for a, b in zip(np.array_split(first, num_folds),
                                                             np.array_split(second, num_folds))]
    return float(np.mean(distances)), float(np.std(distances, ddof=1))


def sample_curve(real: np.ndarray, fake: np.ndarray, num_points: int = 10, seed: int = 0,
                 paired: bool = False) -> SampleCurve:
    """Distance against the number of clips, and the line through it (Chong and Forsyth, arXiv 1911.07023).

    Subsets of both sets of equal size N, from a third of the smaller set up, are scored; the bias falls as 1/N, so the
    line's value at 1/N = 0 is the distance at infinitely many clips. It can be slightly negative for equal
    distributions.
    """
    rng = np.random.default_rng(seed)
    smallest = min(len(real), len(fake))
    sizes = np.unique(np.linspace(max(MIN_CLIPS, smallest // 3), smallest, num_points).astype(int))
    if len(sizes) < 2:
        raise ValueError(f"the smaller set has {smallest} clips; a line needs at least {MIN_CLIPS + 1}")
    distances = []
    for n in sizes:
        first = rng.permutation(len(real))[:n]
        distances.append(_distance(real[first], fake[first if paired else rng.permutation(len(fake))[:n]]))
    slope, infinite = np.polyfit(1 / sizes, distances, 1)
    return {"clips": sizes.tolist(), "fvd": distances, "slope": float(slope), "infinite": float(infinite)}


def limit_notes(real: np.ndarray, fake: np.ndarray) -> list[str]:
    """What to say of the limit of `sample_curve`: a list that is empty where it holds."""
    num_features = real.shape[1]
    if min(len(real), len(fake)) >= num_features:
        return []
    return [f"fvd_infinite is unreliable: a set has fewer clips than the {num_features} features, where the bias does "
            "not yet fall as 1/N"]
