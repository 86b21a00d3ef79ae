"""Learning curves as numbers, against numbers derived by hand."""

import numpy as np
import pytest

from comparison.curves import POINTS, area_under_curve, binned_returns, fill_gaps, first_reached, trailing_mean, value_at

NAN = float("nan")


def test_episodes_go_to_the_interval_in_which_they_ended():
    ends, returns = np.array([1, 19, 20, 999, 1001]), np.array([1.0, 3.0, 10.0, 7.0, 1e9])
    binned = binned_returns(ends, returns, n_timesteps=1000)  # intervals of 20 steps
    assert binned.shape == (POINTS,)
    assert binned[0] == 2.0
    assert binned[1] == 10.0
    assert binned[-1] == 7.0, "an episode that ended after the training does not count"
    assert np.isnan(binned[2:-1]).all()


def test_a_training_without_an_episode_is_an_error():
    with pytest.raises(ValueError, match="no episode ended within 100 steps: raise n_timesteps"):
        binned_returns(np.array([101]), np.array([1.0]), n_timesteps=100)


def test_gaps_have_the_value_before_them_and_the_beginning_the_first():
    returns = np.array([[NAN, NAN, 1.0, NAN, 2.0, NAN], [3.0, NAN, NAN, NAN, NAN, 4.0]])
    np.testing.assert_array_equal(fill_gaps(returns), [[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 4]])


def test_score_is_the_mean_of_the_points_before():
    returns = np.random.default_rng(0).normal(size=(2, 12))
    scores = trailing_mean(returns, window=5)
    for point in range(12):
        np.testing.assert_allclose(scores[:, point], returns[:, max(0, point - 4) : point + 1].mean(axis=1))


def test_runs_that_end_alike_end_with_the_same_bits():
    """As on CartPole, where the best return is 500: these are ties, however the runs came there."""
    runs = np.random.default_rng(0).uniform(0, 500, size=(100, 50))
    runs[:, 30:] = 500.0
    assert (trailing_mean(runs, window=5)[:, -1] == 500.0).all()


def test_area_is_the_mean_height():
    np.testing.assert_array_equal(area_under_curve(np.array([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]])), [2.0, 2.0])


def test_curves_at_a_time():
    grid, curves = np.array([1.0, 3.0]), np.array([[10.0, 20.0], [0.0, -2.0]])
    np.testing.assert_array_equal(value_at(2.0, grid, curves), [15.0, -1.0])
    np.testing.assert_array_equal(value_at(np.array([0.0, 3.0, 9.0]), grid, curves), [[10, 20, 20], [0, -2, -2]])


def test_first_time_at_a_level_even_if_it_is_lost_again():
    scores = np.array([[0.0, 5.0, 1.0, 6.0], [0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(first_reached(5.0, np.array([10, 20, 30, 40]), scores), [20, np.inf])
