"""What repeated timings allow to be said. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """
    :param median: of the values
    :param low: their lower quartile
    :param high: their upper quartile
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles: one run that the machine disturbed moves neither."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Spread(median, low, high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """
    How many times longer one took than the other, run by run: what slows the machine down slows both runs of a pair.

    :param numerators: seconds, one of each pair
    :param denominators: seconds of the other, in the same order
    :raises ValueError: if there are not as many of these as of those
    """
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def geometric_mean(ratios: Sequence[float]) -> float:
    """(r₁ r₂ … rₙ)^(1/n): twice as fast here and half as fast there is equally fast."""
    return float(np.exp(np.mean(np.log(ratios))))
