"""Intervals of a mean: numbers by hand, limits, and a small simulation of their coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from onebase.compare.statistics.blaker import blaker_interval
from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.intervals import mean_interval, mean_intervals

RIGHT = [1.0] * 9 + [0.0] * 3


def test_single_right_or_wrong_rows_have_the_exact_interval() -> None:
    interval = mean_interval(RIGHT, range(12), bounds=(0, 1))
    assert (interval.low, interval.high) == pytest.approx(blaker_interval(9, 12))
    assert interval.mean == 0.75


def test_a_symmetric_loss_has_students_interval() -> None:
    losses = [1.0, 2.0, 3.0, 4.0, 5.0]
    interval = mean_interval(losses, range(5))
    expected = stats.ttest_1samp(losses, 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_skewed_loss_has_a_longer_right_side() -> None:
    losses = np.array([1.0, 1.0, 1.0, 2.0, 9.0])
    interval = mean_interval(losses.tolist(), range(5))
    # Hall's transformation at the end: T + g T^2 / 3 + g^2 T^3 / 27 + g / 6n is t / sqrt(n).
    deviation, skewness = losses.std(ddof=1), stats.skew(losses, bias=False)
    for end, sign in ((interval.low, 1), (interval.high, -1)):
        x = (interval.mean - end) / deviation
        value = x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / 30
        assert value == pytest.approx(sign * stats.t.ppf(0.975, 4) / math.sqrt(5))
    assert interval.high - interval.mean > 2 * (interval.mean - interval.low)


def test_clusters_widen_an_interval() -> None:
    rows = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0] * 10
    alone = mean_interval(rows, range(60), bounds=(0, 1))
    together = mean_interval(rows, [row // 3 for row in range(60)], bounds=(0, 1))
    assert together.low < alone.low < alone.mean == together.mean < alone.high < together.high


def test_a_rare_error_in_clusters_is_wilsons_interval_at_the_expected_design_effect() -> None:
    # No error in 40 rows of 20 inputs: design effect 1 + .22; no cluster informs, so t has 6 degrees.
    interval = mean_interval([1.0] * 40, [row // 2 for row in range(40)], bounds=(0, 1))
    t = stats.t.ppf(0.975, 6)
    effective = 40 / 1.22
    assert interval.low == pytest.approx(effective / (effective + t**2))
    assert interval.high == 1


def test_averages_over_seeds_have_wilsons_interval_by_their_own_variance() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0, 0.5, 1.0])
    interval = mean_interval(values.tolist(), range(6), bounds=(0, 1))
    mean, t = values.mean(), stats.t.ppf(0.975, 5)
    effective = 6 * mean * (1 - mean) / values.var(ddof=1)
    # Wilson's ends solve (mean - p)^2 = t^2 p (1 - p) / n.
    for end in (interval.low, interval.high):
        assert (mean - end) ** 2 == pytest.approx(t**2 * end * (1 - end) / effective)


def test_bounds_only_scale() -> None:
    scores = [0.1, 0.4, 0.35, 0.8, 0.2, 0.6]
    one = mean_interval(scores, range(6), bounds=(0, 1))
    hundred = mean_interval([100 * score for score in scores], range(6), bounds=(0, 100))
    assert (hundred.low, hundred.high) == pytest.approx((100 * one.low, 100 * one.high))


def test_rounding_does_not_leave_the_bounds() -> None:
    interval = mean_interval([100 + 1e-12, 100.0, 100.0], range(3), bounds=(0, 100))
    assert interval.high == 100


def test_averages_over_seeds_that_differ_are_narrower_than_a_single_seed() -> None:
    third = mean_interval([1 / 3, 2 / 3] * 30, range(60), bounds=(0, 1))
    single = mean_interval([0.0, 1.0] * 30, range(60), bounds=(0, 1))
    assert single.low < third.low < 0.5 < third.high < single.high


def test_one_input_says_nothing() -> None:
    assert mean_interval([1.0, 0.0], [0, 0], bounds=(0, 1)).low == 0
    assert mean_interval([1.0, 0.0], [0, 0], bounds=(0, 1)).high == 1
    assert mean_interval([1.0, 2.0], [0, 0]).high == math.inf
    assert mean_interval([1.0], [0]).low == -math.inf


def test_equal_values_of_a_loss_have_no_width() -> None:
    interval = mean_interval([2.0] * 8, range(8))
    assert (interval.low, interval.high) == (2, 2)


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("proportion", [0.05, 0.3, 0.5, 0.95])
def test_coverage_of_clustered_rows(rows: int, proportion: float) -> None:
    generator = np.random.default_rng(15)
    covered = []
    for _ in range(10):
        codes = np.sort(generator.integers(0, rows // 3, rows))
        clusters = Clusters(codes.tolist())
        scale = 0.7 / 0.3  # an intra-cluster correlation of .3
        levels = generator.beta(proportion * scale, (1 - proportion) * scale, (200, rows // 3))
        values = (generator.random((200, rows)) < levels[:, codes]) * 1.0
        _, low, high = mean_intervals(values, clusters, (0.0, 1.0))
        covered.append((low <= proportion) & (proportion <= high))
    assert 0.93 < np.mean(covered) < 0.995


@pytest.mark.parametrize("clustered", [False, True])
def test_coverage_of_skewed_losses(clustered: bool) -> None:
    generator = np.random.default_rng(3)
    codes = np.arange(60) // 3 if clustered else np.arange(60)
    normal = generator.standard_normal((1500, codes.max() + 1))[:, codes]
    losses = np.exp(0.5 * (0.5 * normal + 0.75**0.5 * generator.standard_normal((1500, 60))))
    _, low, high = mean_intervals(losses, Clusters(codes.tolist()), None)
    assert 0.925 < np.mean((low <= np.exp(0.125)) & (np.exp(0.125) <= high)) < 0.965
