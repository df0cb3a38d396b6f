"""Pairs: differences, Holm's correction, and intervals that agree with their p-values."""

import numpy as np
import pytest
from errorbars.compare import paired_compare
from errorbars.leaderboard import holm_correction
from scipy import stats

from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.paired import added_rows_interval, holm, pairs


def test_holm_by_hand() -> None:
    # Ranked .01 x 4, .02 x 3, .03 x 2, .5: .04, .06, .06, .5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_is_that_of_errorbars() -> None:
    p_values = np.random.default_rng(0).random(36) ** 3
    assert holm(p_values.tolist()) == pytest.approx(holm_correction(p_values.tolist()))


def test_a_pair_by_hand() -> None:
    table = {"lora": [1.0] * 9 + [0.0], "ia3": [0.0] * 8 + [1.0, 0.0], "full": [1.0] * 9 + [0.0]}
    first, second, third = pairs(table, range(10), bounds=(0, 1))
    assert (first.one, first.other, first.difference) == ("lora", "ia3", 0.8)
    assert first.p == pytest.approx(stats.binomtest(8, 8).pvalue)
    assert first.p_holm == pytest.approx(3 * first.p)
    assert first.decided
    assert first.low > 0
    assert (second.one, second.other, second.difference) == ("lora", "full", 0)
    assert (second.p, second.p_holm, second.decided) == (1, 1, False)
    assert third.has("ia3")
    assert not third.has("lora")


def test_turned_is_the_pair_from_the_other_side() -> None:
    values = np.random.default_rng(1).normal(size=(2, 30)).tolist()
    (pair,) = pairs({"a": values[0], "b": values[1]}, range(30))
    (other,) = pairs({"b": values[1], "a": values[0]}, range(30))
    assert pair.turned() == other


def test_methods_that_agree_on_every_row_may_still_differ() -> None:
    (pair,) = pairs({"a": [1.0] * 12, "b": [1.0] * 12}, range(12), bounds=(0, 1))
    assert pair.p == 1
    # Two rows added, +1 and -1: mean 0, sum of squares 2, 13 degrees of freedom.
    half = stats.t.ppf(0.975, 13) * np.sqrt(2) / 14
    assert (pair.low, pair.high) == pytest.approx((-half, half))
    (loss,) = pairs({"a": [1.0] * 12, "b": [1.0] * 12}, range(12))
    assert (loss.low, loss.high) == (0, 0)


def test_added_rows_change_little_where_most_rows_differ() -> None:
    rows = np.random.default_rng(0).normal(2, 10, (1, 300))
    low, high = added_rows_interval(rows, Clusters(range(300)), 100)
    expected = stats.ttest_1samp(rows[0], 0).confidence_interval()
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_too_few_inputs_decide_nothing() -> None:
    table = {"a": [1.0] * 12, "b": [0.0] * 12}
    (pair,) = pairs(table, [row // 3 for row in range(12)], bounds=(0, 1))
    assert pair.p == 1 / 8
    assert (pair.low, pair.high) == (-1, 1)
    (loss,) = pairs(table, [row // 3 for row in range(12)])
    assert (loss.low, loss.high) == (-np.inf, np.inf)


@pytest.mark.parametrize("rows", [10, 18])
def test_intervals_agree_with_p_values(rows: int) -> None:
    generator = np.random.default_rng(rows)
    codes = np.sort(generator.integers(0, rows, rows)).tolist()
    for seeds in (1, 3):
        rates = generator.random((9, 1))
        values = (generator.random((seeds, 9, rows)) < rates).mean(axis=0)
        table = dict(zip("abcdefghi", values.tolist(), strict=True))
        for bounds in ((0, 1), None):
            for pair in pairs(table, codes, bounds=bounds):
                assert (pair.low > 0 or pair.high < 0) == (pair.p < 0.05)
                assert pair.low <= pair.difference <= pair.high
                assert pair.p <= pair.p_holm


def test_clustered_pairs_are_near_those_of_errorbars() -> None:
    generator = np.random.default_rng(4)
    codes = np.repeat(np.arange(80), 3)
    shared = generator.normal(size=240)
    one = shared + generator.normal(size=80)[codes] / 2 + generator.normal(size=240)
    other = shared - 0.25 + generator.normal(size=240)
    reference = paired_compare(one, other, codes)
    (pair,) = pairs({"a": one.tolist(), "b": other.tolist()}, codes.tolist())
    assert pair.difference == pytest.approx(reference.mean_diff)
    assert pair.p == pytest.approx(reference.p_value_clustered, abs=0.005)
    assert (pair.low, pair.high) == pytest.approx(
        (reference.ci_low_clustered, reference.ci_high_clustered), abs=0.015
    )


def test_one_method_has_no_pairs() -> None:
    assert pairs({"a": [1.0, 2.0]}, [0, 1]) == []


def test_an_end_that_would_cross_0_stays_where_the_test_has_it() -> None:
    # Every row is better, one by far: p is 2 / 4096, but the two added rows alone would reach across 0.
    rows = np.array([[0.01] * 11 + [1.0]])
    assert added_rows_interval(rows, Clusters(range(12)), 1)[0][0] < 0
    (pair,) = pairs({"a": rows[0].tolist(), "b": [0.0] * 12}, range(12), bounds=(0, 1))
    assert pair.p == 2 / 4096
    assert pair.low == pytest.approx(0.01)
    assert pair.turned().high == -pair.low
