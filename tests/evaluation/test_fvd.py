import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from nbp.evaluation import fvd

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def draw(count, features, seed, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, features))


def test_closed_form_of_two_gaussians():
    # Axis-aligned Gaussians: |m1 - m2|^2 + sum of (s1 - s2)^2.
    means, deviations = np.array([[0.0, 1, 2], [1.0, 1, 0]]), np.array([[1.0, 2, 0], [3.0, 2, 1]])
    expected = 5 + 5
    got = fvd.gaussian_distance(means[0], np.diag(deviations[0] ** 2), means[1], np.diag(deviations[1] ** 2))
    assert got == pytest.approx(expected, rel=1e-12)


def test_agrees_with_scipys_matrix_root():
    a, b = draw(200, 12, 0) @ draw(12, 12, 1), draw(300, 12, 2, shift=0.3)
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = (((a.mean(0) - b.mean(0)) ** 2).sum()
                + np.trace(sigma_a + sigma_b - 2 * scipy.linalg.sqrtm(sigma_a @ sigma_b).real))
    assert fvd.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    moments = [torch.from_numpy(x) for x in (a.mean(0), sigma_a, b.mean(0), sigma_b)]
    assert fvd.frechet_distance(a, b) == pytest.approx(float(_compute_fid(*moments)), rel=1e-8)


@pytest.mark.parametrize("count", [20, 200])
def test_identical_sets_are_at_distance_zero(count):
    a = draw(count, 50, 0)
    assert fvd.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert fvd.frechet_distance(a, a[::-1].copy()) == pytest.approx(0, abs=1e-9)


def test_fewer_clips_than_features():
    a, b = draw(10, 40, 0), draw(12, 40, 1, scale=2, shift=0.5)
    centred = [x - x.mean(0) for x in (a, b)]
    cross = np.linalg.svd(centred[0] @ centred[1].T / np.sqrt(9 * 11), compute_uv=False).sum()
    exact = (((a.mean(0) - b.mean(0)) ** 2).sum() + (centred[0] ** 2).sum() / 9 + (centred[1] ** 2).sum() / 11
             - 2 * cross)
    assert fvd.frechet_distance(a, b) == pytest.approx(exact, rel=1e-12)
    assert fvd.frechet_distance(b, a) == pytest.approx(exact, rel=1e-12)


def test_distance_of_constant_features():
    assert fvd.frechet_distance(np.ones((10, 3)), np.zeros((10, 3))) == pytest.approx(3)


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_statistics_do_not_depend_on_batches(batch):
    features = draw(100, 8, 0, shift=1e4)   # a large mean makes plain sums of squares lose 8 digits
    stats = fvd.empty_stats(8)
    for start in range(0, 100, batch):
        stats = fvd.merge_stats(stats, fvd.feature_stats(features[start:start + batch]))
    assert float(stats.count) == 100
    assert np.allclose(stats.mean, features.mean(0), rtol=1e-14)
    assert np.allclose(stats.covariance, np.cov(features, rowvar=False), rtol=1e-9)


def test_statistics_merge_in_any_order():
    features = draw(30, 5, 0)
    parts = [fvd.feature_stats(part) for part in np.split(features, [1, 4, 20])]
    left = fvd.merge_stats(fvd.merge_stats(parts[0], parts[1]), fvd.merge_stats(parts[2], parts[3]))
    right = fvd.merge_stats(parts[3], fvd.merge_stats(parts[2], fvd.merge_stats(parts[1], parts[0])))
    assert torch.allclose(left.scatter, right.scatter, rtol=1e-12)


def test_inputs_are_left_alone():
    a, b = draw(20, 4, 0).astype(np.float32), draw(20, 4, 1).astype(np.float32)
    copies = a.copy(), b.copy()
    first = fvd.frechet_distance(a, b)
    assert fvd.frechet_distance(a, b) == first
    assert np.array_equal(a, copies[0]) and np.array_equal(b, copies[1])


def test_too_few_clips():
    with pytest.raises(ValueError, match="the fake set has 7 clips; a Frechet distance needs at least 8"):
        fvd.frechet_distance(draw(20, 4, 0), draw(7, 4, 1))


@pytest.mark.filterwarnings("default")
def test_few_clips_warn_with_the_bias():
    with pytest.warns(UserWarning, match="the real set has only 20 clips.*biased upwards.*0.33 of the trace at 256"):
        fvd.frechet_distance(draw(20, 4, 0), draw(2048, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fvd.frechet_distance(draw(2048, 4, 0), draw(2048, 4, 1))


@pytest.mark.parametrize("bad, message", [
    (np.full((10, 4), np.nan), "features of 10 of 10 clips are NaN or infinite, the first in row 0"),
    (np.zeros((10, 4), int), "accepted: floats of shape"),
    (np.zeros((10,)), "accepted: floats of shape"),
    (np.zeros((0, 4)), "accepted: floats of shape"),
])
def test_bad_features_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        fvd.frechet_distance(draw(10, 4, 0), bad)


def test_unequal_widths_are_refused():
    with pytest.raises(ValueError, match="real has 4 features and fake 5"):
        fvd.frechet_distance(draw(10, 4, 0), draw(10, 5, 0))


def test_kernel_distance():
    a, b = draw(60, 6, 0), draw(50, 6, 1, shift=1)
    kernel = lambda x, y: ((x[:, None] * y[None]).sum(2) / 6 + 1) ** 3   # noqa: E731
    k_aa, k_bb = kernel(a, a), kernel(b, b)
    expected = ((k_aa.sum() - np.trace(k_aa)) / (60 * 59) + (k_bb.sum() - np.trace(k_bb)) / (50 * 49)
                - 2 * kernel(a, b).mean())
    assert fvd.polynomial_mmd(a, b) == pytest.approx(expected, rel=1e-10)
    alike = a[:50], b   # torchmetrics has the formula for sets of one size
    assert fvd.polynomial_mmd(*alike) == pytest.approx(float(poly_mmd(*map(torch.from_numpy, alike))), rel=1e-10)
    assert fvd.polynomial_mmd(a, b, block=7) == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="a set has 1 clips"):
        fvd.polynomial_mmd(a[:1], b)


def test_kernel_distance_is_unbiased():
    values = [fvd.polynomial_mmd(draw(20, 4, 2 * seed), draw(20, 4, 2 * seed + 1)) for seed in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_kernel_distance_of_pairs_is_unbiased():
    values = []
    for seed in range(200):
        both = draw(20, 4, 3 * seed)
        values.append(fvd.polynomial_mmd(*(both + 0.1 * draw(20, 4, 3 * seed + side) for side in (1, 2)), paired=True))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert fvd.polynomial_mmd(both, both) < -0.1, "not as pairs"
