"""
Learning curves as numbers. Pure functions.

A curve has a value for each of ``points`` equal intervals of training steps; the last axis is always that of points.
"""

import numpy as np
from scipy import stats

POINTS = 50  # a curve's resolution: 2 % of the training
TENTH = POINTS // 10


def binned_returns(ends: np.ndarray, returns: np.ndarray, n_timesteps: int) -> np.ndarray:
    """
    Mean return of the episodes that ended in each of the intervals.

    :param ends: the step at which each episode ended, shape ``(episodes,)``
    :param returns: its return, shape ``(episodes,)``
    :param n_timesteps: the steps of the training; an episode that ended after these does not count
    :return: shape ``(POINTS,)``, NaN where no episode ended
    :raises ValueError: if no episode ended at all
    """
    if not np.any(ends <= n_timesteps):
        raise ValueError(f"no episode ended within {n_timesteps} steps: raise n_timesteps")
    return stats.binned_statistic(ends, returns, "mean", bins=POINTS, range=(0, n_timesteps)).statistic


def fill_gaps(returns: np.ndarray) -> np.ndarray:
    """An interval in which no episode ended has the value before it; before the first, the first."""
    known = ~np.isnan(returns)
    last_known = np.maximum.accumulate(np.where(known, np.arange(returns.shape[-1]), -1), axis=-1)
    first_known = np.argmax(known, axis=-1, keepdims=True)
    return np.take_along_axis(returns, np.where(last_known < 0, first_known, last_known), axis=-1)


def trailing_mean(returns: np.ndarray, window: int = TENTH) -> np.ndarray:
    """
    The score of a run at each point: the mean over the tenth of the training that ends there.

    s_k = mean(R_{k−w+1} … R_k), and of what there is where fewer than w points precede.
    """
    # Each mean by itself, not as a difference of sums, whose rounding would tell apart runs that end alike
    before = np.full((*returns.shape[:-1], window - 1), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([before, returns], axis=-1), window, axis=-1)
    return np.nanmean(windows, axis=-1)


def area_under_curve(returns: np.ndarray) -> np.ndarray:
    """∫ R dn / n_timesteps, which for equal intervals is the mean: the return averaged over the training."""
    return returns.mean(axis=-1)


def value_at(where: float | np.ndarray, grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    Curves at given times, by linear interpolation; before the first and after the last point, the value there.

    :param where: a time, or times of shape ``(times,)``
    :param grid: the time at each point, shape ``(points,)``
    :param values: a curve for each run, shape ``(runs, points)``
    :return: shape ``(runs,)`` or ``(runs, times)``
    """
    return np.stack([np.interp(where, grid, curve) for curve in values])


def first_reached(target: float, grid: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """
    When each run first had a given score.

    :param target: the score
    :param grid: steps or seconds at each point, shape ``(points,)``
    :param scores: shape ``(runs, points)``
    :return: shape ``(runs,)``, ∞ for a run that never had it
    """
    reached = scores >= target
    return np.where(reached.any(axis=-1), grid[reached.argmax(axis=-1)], np.inf)
