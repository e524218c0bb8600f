import numpy as np
import pytest

from nbp.evaluation import uncertainty


def draw(count, seed, shift=0.0, features=10):
    return np.random.default_rng(seed).normal(shift, 1, (count, features))


def test_extrapolation_removes_the_bias():
    real, fake = draw(200, 0), draw(200, 1)
    biased = uncertainty._distance(real, fake)
    assert biased > 0.2
    assert abs(uncertainty.sample_curve(real, fake)["infinite"]) < biased / 3


def test_curve_falls_to_its_limit():
    real, fake = draw(200, 0), draw(200, 1)
    curve = uncertainty.sample_curve(real, fake)
    assert curve["clips"][0] == 66 and curve["clips"][-1] == 200 and len(curve["fvd"]) == 10
    assert curve["fvd"][0] > curve["fvd"][-1] > curve["infinite"] and curve["slope"] > 0
    assert curve["fvd"][-1] == pytest.approx(uncertainty._distance(real, fake))
    with pytest.raises(ValueError, match="the smaller set has 8 clips; a line needs at least 9"):
        uncertainty.sample_curve(real, draw(8, 1))


def test_interval_holds_the_distance_and_narrows():
    wide, narrow = [uncertainty.bootstrap_interval(draw(n, 0), draw(n, 1, shift=1)) for n in (30, 1000)]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert narrow[0] < 10 < narrow[1] + 1   # the means are sqrt(10) apart


def test_all_measures_by_seed():
    real, fake = draw(60, 0), draw(50, 1, shift=0.5)
    scores = uncertainty.uncertainty(real, fake, seed=3)
    assert set(scores) == {"fvd_interval_95", "fvd_folds_mean", "fvd_folds_deviation", "fvd_infinite",
                           "fvd_real_halves"}
    assert scores == uncertainty.uncertainty(real, fake, seed=3) != uncertainty.uncertainty(real, fake, seed=4)
    low, high = scores["fvd_interval_95"]
    assert 0 <= low < uncertainty._distance(real, fake) < high


def test_small_sets_leave_out_what_needs_more():
    assert set(uncertainty.uncertainty(draw(10, 0), draw(10, 1))) == {"fvd_interval_95"}


def test_folds_are_higher_than_the_whole():
    real, fake = draw(100, 0), draw(100, 1)
    mean, deviation = uncertainty.fold_deviation(real, fake)
    assert mean > uncertainty._distance(real, fake) and deviation == pytest.approx(deviation) and deviation > 0


def test_pairs_are_drawn_together():
    """Reconstructions: sets of other videos would be far apart, these are not."""
    real = draw(400, 0, features=32)
    fake = real + 0.05 * draw(400, 1, features=32)
    distance = uncertainty._distance(real, fake)
    pairs, strangers = (uncertainty.uncertainty(real, fake, paired=paired) for paired in (True, False))
    assert strangers["fvd_folds_mean"] > 10 * pairs["fvd_folds_mean"] and strangers["fvd_infinite"] < -distance
    assert 0 <= pairs["fvd_infinite"] <= distance
    low, high = pairs["fvd_interval_95"]
    assert low <= distance <= high and high - low < distance < strangers["fvd_interval_95"][1]
