"""The statistics against numbers derived by hand, another implementation, and enumeration."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from comparison.statistics import (
    estimate,
    interquartile_mean,
    mean_probability_of_improvement,
    probability_of_improvement,
)


def test_iqm_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean(np.array([1000.0, 1, 2, 3, 4, 5, 0, -100])) == 2.5  # of 1, 2, 3, 4


@pytest.mark.parametrize(("runs", "iqm"), [([1.0], 1.0), ([1.0, 2.0, 9.0], 4.0), ([-50.0, 1.0, 2.0, 3.0, 99.0], 2.0)])
def test_iqm_of_few_runs(runs, iqm):
    assert interquartile_mean(np.array(runs)) == iqm


def test_iqm_pools_the_strata():
    assert interquartile_mean(np.array([0.0, 1.0]), np.array([3.0, 100.0])) == 2.0  # of 1 and 3


def test_probability_counts_pairs_and_halves_ties():
    # of the six pairs, none is won and (2, 2) is tied twice
    assert probability_of_improvement(np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(1 / 6)


def test_probability_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, size=(4, 7)), rng.integers(0, 6, size=(4, 5))
    expected = stats.mannwhitneyu(x, y, axis=-1).statistic / (7 * 5)
    np.testing.assert_allclose(probability_of_improvement(x, y), expected)


def test_probabilities_of_both_sides_add_up_to_one():
    x, y = np.array([1.0, 4.0, 4.0]), np.array([0.0, 4.0, 5.0, 6.0])
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1.0)


def test_mean_probability_pairs_each_task_with_itself():
    better, worse = np.array([10.0, 11.0]), np.array([1.0, 2.0])
    assert mean_probability_of_improvement(better, worse, worse, better) == 0.5  # one task won, one lost
    assert mean_probability_of_improvement(better, better, worse, worse) == 1.0


def test_interval_is_that_of_all_resamples():
    x, y = np.array([3.0, 1.0, 4.5, 2.0]), np.array([0.0, 2.5, 7.0])
    means = sorted(
        np.mean([*a, *b]) for a, b in product(product(x, repeat=4), product(y, repeat=3), repeat=1)
    )  # 4⁴ · 3³ resamples, each as likely

    result = estimate(lambda a, b, axis: np.concatenate([a, b], axis=axis).mean(axis=axis), [x, y])
    assert result.value == np.mean([*x, *y])
    # 2000 resamples find the 2.5 % and 97.5 % points to within a percent
    assert np.quantile(means, 0.015) <= result.low <= np.quantile(means, 0.035)
    assert np.quantile(means, 0.965) <= result.high <= np.quantile(means, 0.985)


def test_resampling_keeps_to_the_strata():
    """Runs that agree within each task leave nothing uncertain, however far the tasks are apart."""
    result = estimate(interquartile_mean, [np.array([1.0, 1.0]), np.array([5.0, 5.0])])
    assert (result.low, result.value, result.high) == (3.0, 3.0, 3.0)


def test_interval_of_a_probability():
    """x = (1, 3), y = (2, 4): by enumeration of the 16 resamples P is 0 in 7 and 1 in 1 of them."""
    x, y = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    resamples = [
        probability_of_improvement(np.array(a), np.array(b)) for a in product(x, repeat=2) for b in product(y, repeat=2)
    ]
    assert (resamples.count(0.0), resamples.count(1.0)) == (7, 1)
    result = estimate(mean_probability_of_improvement, [x, y])
    assert (result.low, result.value, result.high) == (0.0, 0.25, 1.0)


def test_the_same_numbers_give_the_same_interval():
    runs = [np.random.default_rng(0).normal(size=5)]
    assert estimate(interquartile_mean, runs) == estimate(interquartile_mean, runs)


def test_one_run_has_no_interval():
    result = estimate(interquartile_mean, [np.array([7.0]), np.array([1.0, 3.0])])
    assert result.value == pytest.approx(11 / 3)
    assert np.isnan([result.low, result.high]).all()


def test_a_curve_has_an_interval_at_each_point():
    curve = np.random.default_rng(0).normal(size=(50, 5))
    result = estimate(interquartile_mean, [curve])
    alone = estimate(interquartile_mean, [curve[3]])
    assert result.low.shape == (50,)
    assert result.value[3] == alone.value
    assert result.low[3] == pytest.approx(alone.low, abs=0.2)
    assert (result.low <= result.value).all()
    assert (result.value <= result.high).all()
