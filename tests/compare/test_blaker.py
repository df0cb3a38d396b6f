"""Blaker's interval against its definition, summed up outcome by outcome, and its coverage."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from onebase.compare.blaker import acceptability, blaker_interval


def by_definition(successes: int, rows: int, proportion: float) -> float:
    """The probability of all outcomes whose smaller tail is no more probable than this one's."""

    def tail(count: int) -> float:
        return float(min(binom.cdf(count, rows, proportion), binom.sf(count - 1, rows, proportion)))

    return sum(
        float(binom.pmf(count, rows, proportion))
        for count in range(rows + 1)
        if tail(count) <= tail(successes) * (1 + 1e-9)
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 15])
def test_acceptability_is_that_of_the_definition(rows: int) -> None:
    proportions = np.array([0.013, 0.1, 0.25, 0.5, 0.61, 0.97])
    for successes in range(rows + 1):
        expected = [by_definition(successes, rows, float(p)) for p in proportions]
        assert acceptability(successes, rows, proportions) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [6, 12, 40])
def test_the_coverage_is_at_least_95_percent_everywhere(rows: int) -> None:
    low, high = np.array([blaker_interval(count, rows) for count in range(rows + 1)]).T
    proportions = np.linspace(0.001, 0.999, 999)[:, None]
    inside = (low <= proportions) & (proportions <= high)
    coverage = (binom.pmf(np.arange(rows + 1), rows, proportions) * inside).sum(axis=1)
    assert coverage.min() > 0.9499


@pytest.mark.parametrize("rows", [1, 5, 12, 30])
def test_it_lies_within_clopper_and_pearsons(rows: int) -> None:
    for successes in range(rows + 1):
        low, high = blaker_interval(successes, rows)
        outer = binomtest(successes, rows).proportion_ci()
        assert outer.low - 1e-9 <= low <= successes / rows <= high <= outer.high + 1e-9


def test_it_is_symmetric_and_ends_at_the_bounds() -> None:
    assert blaker_interval(3, 10) == pytest.approx(
        [1 - end for end in reversed(blaker_interval(7, 10))]
    )
    assert blaker_interval(0, 12)[0] == 0
    assert blaker_interval(12, 12)[1] == 1
    # The upper end after 0 of n: the two tails of 0 have p^0 (1-p)^n and 1.
    assert blaker_interval(0, 1)[1] == pytest.approx(0.95, abs=1e-4)
