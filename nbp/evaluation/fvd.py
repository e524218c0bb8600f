"""Frechet and kernel distances between two sets of feature vectors, in float64.

Features come in as (N,D) arrays or tensors of any float type; nothing is changed in place.
Statistics are streamed: memory depends on D only, and parts computed anywhere are merged by the update
of Chan, Golub and LeVeque, so batch size and sharding change a score by rounding only.
Legend: N clips, D features.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_CLIPS = 8
# Distance between two samples of one 400-d Gaussian, as a share of the covariance's trace.
SAMPLE_BIAS = {256: 0.33, 2048: 0.042, 50_000: 0.0017}


class FeatureStats(NamedTuple):
    """Count, mean (D,) and scatter matrix (D,D) = sum of (x - mean)(x - mean)^T, all float64."""

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D,D)."""
        return self.scatter / (self.count - 1)


def empty_stats(num_features: int) -> FeatureStats:
    """Statistics of no features at all."""
    zeros = torch.zeros(num_features + 1, num_features, dtype=torch.float64)
    return FeatureStats(zeros.new_zeros(()), zeros[0], zeros[1:])


def feature_stats(features: np.ndarray | Tensor) -> FeatureStats:
    """Statistics of features (N,D). ValueError: wrong shape, no rows, or not finite; names the first bad row."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {tuple(features.shape)}; "
                         "accepted: floats of shape (N,D), N > 0")
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise ValueError(f"features of {int(bad.sum())} of {len(features)} clips are NaN or infinite, "
                         f"the first in row {int(bad.nonzero()[0])}")
    features = features.to(torch.float64)
    mean = features.mean(0)
    centred = features - mean
    return FeatureStats(mean.new_tensor(float(len(features))), mean, centred.T @ centred)


def merge_stats(a: FeatureStats, b: FeatureStats) -> FeatureStats:
    """Statistics of the union of two disjoint sets."""
    count = a.count + b.count
    share = b.count / count.clamp_min(1)
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + torch.outer(delta, delta) * (a.count * share)
    return FeatureStats(count, a.mean + delta * share, scatter)


def _root_factor(covariance: Tensor) -> Tensor:
    """F with F F^T = covariance, one column per eigenvalue above rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues of a rank-deficient matrix come out as noise of this size; their roots would not be small.
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()


def gaussian_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance, not negative, of two Gaussians with means (D,) and covariances (D,D).

    Tr sqrt(A B) is the sum of singular values of F_A^T F_B for any factors A = F_A F_A^T, so singular covariances
    (fewer clips than features) need no jitter and the result is symmetric.
    """
    mean_a, covariance_a, mean_b, covariance_b = (torch.as_tensor(x, dtype=torch.float64) for x in
                                                  (mean_a, covariance_a, mean_b, covariance_b))
    cross = torch.linalg.svdvals(_root_factor(covariance_a).T @ _root_factor(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def stats_distance(real: FeatureStats, fake: FeatureStats) -> float:
    """Frechet distance of two `FeatureStats`. ValueError: fewer than `MIN_CLIPS` clips in a set, or unequal feature
    widths. Warns with the bias where a set has fewer than 2048 clips."""
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"real has {len(real.mean)} features and fake {len(fake.mean)}")
    for name, count in (("real", int(real.count)), ("fake", int(fake.count))):
        check_enough(count, name)
        if count < 2048:
            bias = ", ".join(f"{share:.2g} of the trace at {n}" for n, share in SAMPLE_BIAS.items())
            warnings.warn(f"the {name} set has only {count} clips. The distance is biased upwards: two samples of one "
                          f"400-d Gaussian are this far apart: {bias}. Compare it only with scores of the same counts.",
                          stacklevel=2)
    return gaussian_distance(real.mean, real.covariance, fake.mean, fake.covariance)


def check_enough(count: int, name: str) -> None:
    """Refuse sets that are too small for a covariance."""
    if count < MIN_CLIPS:
        raise ValueError(f"the {name} set has {count} clips; a Frechet distance needs at least {MIN_CLIPS}")


def frechet_distance(real: np.ndarray | Tensor, fake: np.ndarray | Tensor) -> float:
    """Frechet distance of two feature matrices (N,D) and (M,D); see `stats_distance`."""
    return stats_distance(feature_stats(real), feature_stats(fake))


def polynomial_mmd(real: np.ndarray | Tensor, fake: np.ndarray | Tensor, paired: bool = False,
                   block: int = 2048) -> float:
    """Kernel video distance of features (N,D) and (M,D), at least two rows each: unbiased squared MMD with the kernel
    (x.y / D + 1)^3 (arXiv 1801.01401). Unbiased, so it is negative about half of the time for equal distributions.

    Where the sets are `paired`, row i of one made from row i of the other as a reconstruction is, such pairs are left
    out (Gretton et al. 2012, Lemma 6, the U-statistic of as many rows): they alone would lower it by their likeness.
    `block` rows of the kernel matrix are in memory at a time; the whole one takes 20 GB for 50k clips.
    """
    for features in (real, fake):
        if len(features) < 2:
            raise ValueError(f"a set has {len(features)} clips; the kernel distance needs at least 2")
    real, fake = (torch.as_tensor(x).to(torch.float64) for x in (real, fake))
    for features in (real, fake):
        if features.shape[1:] != real.shape[1:] or not torch.isfinite(features).all():
            raise ValueError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}; accepted: (N,D) and "
                             "(M,D), finite")
    within = sum((_kernel_sum(x, x, block) - float(_kernel(x.square().sum(1), x.shape[1]).sum()))
                 / (len(x) * (len(x) - 1)) for x in (real, fake))
    between, pairs = _kernel_sum(real, fake, block), len(real) * len(fake)
    if paired:
        between, pairs = between - float(_kernel((real * fake).sum(1), real.shape[1]).sum()), pairs - len(real)
    return within - 2 * between / pairs


def _kernel(products: Tensor, num_features: int) -> Tensor:
    return (products / num_features + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor, block: int) -> float:
    """Sum of the kernel over all pairs, a tile of block x block at a time."""
    return sum(float(_kernel(rows @ columns.T, x.shape[1]).sum()) for rows in x.split(block)
               for columns in y.split(block))
