"""Blaker's exact interval of a proportion (Canadian Journal of Statistics 28, 2000).

Its coverage is at least the nominal one for every proportion, like that of Clopper and Pearson, and it lies
inside theirs. scipy has Clopper-Pearson and Wilson, but not this one.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom

# The end is searched in two scans of this many steps, from the bound of Clopper and Pearson inwards:
# the accepted proportions may have gaps, so a bisection could find an inner end.
STEPS = 400


@lru_cache(maxsize=4096)
def blaker_interval(successes: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the proportion after `successes` in `rows` independent rows."""
    low = _low(successes, rows, 1 - confidence)
    high = 1 - _low(rows - successes, rows, 1 - confidence)
    return low, high


def acceptability(
    successes: int, rows: int, proportions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each proportion, the probability of the smaller tail from this outcome on, plus that of the
    largest opposite tail that is not more probable. Proportions above the level are in the interval.
    """
    below = binom.cdf(successes, rows, proportions)
    above = binom.sf(successes - 1, rows, proportions)
    # A tail that equals this one up to rounding counts.
    tail = np.minimum(below, above) * (1 + 1e-10)
    last = binom.ppf(tail, rows, proportions)  # the first count whose lower tail reaches `tail`
    last = np.where(binom.cdf(last, rows, proportions) > tail, last - 1, last)
    first = rows - binom.ppf(tail, rows, 1 - proportions)
    first = np.where(binom.sf(first - 1, rows, proportions) > tail, first + 1, first)
    opposite = np.where(
        above <= below, binom.cdf(last, rows, proportions), binom.sf(first - 1, rows, proportions)
    )
    return np.asarray(np.minimum(1.0, np.minimum(below, above) + opposite))


def _low(successes: int, rows: int, level: float) -> float:
    if successes == 0:
        return 0.0
    low = float(betaincinv(successes, rows - successes + 1, level / 2))  # Clopper and Pearson's
    high = successes / rows
    for _ in range(2):
        grid = np.linspace(low, high, STEPS + 1)
        accepted = np.flatnonzero(acceptability(successes, rows, grid) > level)
        if not len(accepted) or accepted[0] == 0:
            return low
        low, high = float(grid[accepted[0] - 1]), float(grid[accepted[0]])
    return low
