"""
What a few runs allow to be said. Pure functions; a sample's last axis is that of its runs.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264, with SciPy's trimmed mean and bootstrap.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """
    A statistic with the interval that it lies in with 95 % confidence.

    :param value: of the sample as it is
    :param low: lower end; NaN where a single run allows no interval
    :param high: upper end; NaN likewise
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Mean of what is left without the lowest and the highest quarter of all runs (IQM).

    Of n runs, ⌊n/4⌋ go at either end: with three or fewer it is the mean. Source: section 4.3 of the paper.

    :param strata: scores on each task, shape ``(..., runs)``, on a common scale
    :return: shape ``(...)``
    """
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    P(X ≥ Y), a tie counted as one half: the chance that a run of X does better than a run of Y.

    P = 1/(n m) Σᵢⱼ [xᵢ > yⱼ] + ½ [xᵢ = yⱼ], the Mann-Whitney statistic over the number of pairs. Source: section 4.3.

    :param x: shape ``(..., n)``
    :param y: shape ``(..., m)``
    :return: shape ``(...)``
    """
    difference = np.sign(x[..., :, None] - y[..., None, :])
    return 0.5 + 0.5 * difference.mean(axis=(-2, -1))


def mean_probability_of_improvement(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    P(X ≥ Y) of each task, averaged over tasks.

    :param strata: X on each task, then Y on each task in the same order
    """
    assert axis == -1, "the statistic is written for runs on the last axis"
    half = len(strata) // 2
    return np.mean([probability_of_improvement(x, y) for x, y in zip(strata[:half], strata[half:], strict=True)], axis=0)


def estimate(statistic: Callable[..., np.ndarray], strata: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """
    A statistic with its stratified-bootstrap percentile interval: runs are drawn anew within each stratum.

    :param statistic: takes the strata and ``axis``
    :param strata: samples, each of shape ``(..., runs)``: one task, or one task of one algorithm
    :param seed: of the resampling, so that a report can be repeated
    :return: of shape ``(...)`` each
    """
    value = np.asarray(statistic(*strata, axis=-1))
    if min(stratum.shape[-1] for stratum in strata) < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    interval = stats.bootstrap(
        strata,
        statistic,
        axis=-1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,  # keeps memory small where a whole curve is resampled
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, interval.low, interval.high)
