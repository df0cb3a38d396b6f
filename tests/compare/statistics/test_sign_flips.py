"""The sign-flip test against scipy's permutation test and the exact McNemar test; its inversion."""

import numpy as np
import pytest
from errorbars.compare import mcnemar_exact
from scipy import stats

from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.sign_flips import EXACT_CLUSTERS, SignFlipTest


def scipys(sums: np.ndarray) -> float:
    result = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda one, other, axis: np.sum(one - other, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    return float(result.pvalue)


@pytest.mark.parametrize("count", [2, 5, 8, 12])
def test_exact_p_values_are_scipys(count: int) -> None:
    generator = np.random.default_rng(count)
    sums = np.column_stack(
        [generator.normal(0.5, 1, count), generator.integers(-2, 3, count), np.ones(count)]
    )
    p_values = SignFlipTest(sums, Clusters(range(count))).p_values()
    assert p_values == pytest.approx([scipys(column) for column in sums.T])


def test_unequal_clusters_are_flipped_whole() -> None:
    rows = np.array([1.0, 2.0, -0.5, 3.0, 0.2, 0.1, 0.9, 1.5, 2.5])
    clusters = Clusters([0, 0, 1, 2, 2, 2, 3, 4, 5])
    sums = clusters.sums(rows)
    assert SignFlipTest(sums[:, None], clusters).p_values()[0] == pytest.approx(scipys(sums))


def test_by_hand() -> None:
    # Of the 8 sign vectors of 1, 2, 3 the sums 6, 4, -4, -6 are as far from 0 as 4 = -1 + 2 + 3.
    test = SignFlipTest(np.array([[-1.0], [2.0], [3.0]]), Clusters(range(3)))
    assert test.p_values()[0] == 0.5
    low, high = test.intervals(0.05)
    assert (low[0], high[0]) == (-np.inf, np.inf)  # 2 of 8 is the least possible
    # The means of flipped and unflipped inputs: -1 and 2.5, 1 and 2, .5 and 3.
    assert [end[0] for end in test.intervals(0.5)] == [-1, 3]  # outside of all three p is 1/4
    assert [end[0] for end in test.intervals(0.75)] == [0.5, 2.5]


@pytest.mark.parametrize("rows", [30, 200])
def test_sampled_p_values_are_near_the_exact_mcnemar_test(rows: int) -> None:
    generator = np.random.default_rng(rows)
    one = (generator.random(rows) < 0.8) * 1.0
    other = (generator.random(rows) < 0.65) * 1.0
    expected = mcnemar_exact(one, other).p_value
    p = SignFlipTest((one - other)[:, None], Clusters(range(rows))).p_values()[0]
    assert p == pytest.approx(expected, abs=0.008)


def test_sampled_interval_is_near_students() -> None:
    rows = np.random.default_rng(1).normal(0.3, 1, 80)
    test = SignFlipTest(rows[:, None], Clusters(range(80)))
    student = stats.ttest_1samp(rows, 0)
    low, high = test.intervals(0.05)
    expected = student.confidence_interval()
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert test.p_values()[0] == pytest.approx(student.pvalue, abs=0.005)


@pytest.mark.parametrize("count", [4, 6, 11, EXACT_CLUSTERS + 5])
def test_the_interval_excludes_0_exactly_if_p_is_below_the_level(count: int) -> None:
    generator = np.random.default_rng(count)
    clusters = Clusters(np.repeat(np.arange(count), generator.integers(1, 4, count)).tolist())
    sums = np.column_stack(
        [
            generator.normal(0.4, 1, (count, 60)),
            generator.integers(-1, 3, (count, 60)) / 3,
            generator.integers(-1, 2, (count, 60)),
            np.zeros((count, 1)),
        ]
    )
    test = SignFlipTest(sums, clusters)
    for level in (0.05, 0.2):
        low, high = test.intervals(level)
        assert (((low > 0) | (high < 0)) == (test.p_values() < level)).all()
        assert (low <= test.differences).all()
        assert (test.differences <= high).all()


def test_a_shift_of_the_data_shifts_the_interval() -> None:
    rows = np.random.default_rng(2).normal(size=(10, 1))
    test, shifted = (SignFlipTest(rows + gain, Clusters(range(10))) for gain in (0, 0.7))
    assert np.array(shifted.intervals(0.05)) == pytest.approx(np.array(test.intervals(0.05)) + 0.7)


def test_the_same_data_has_the_same_p_value() -> None:
    rows = np.random.default_rng(2).normal(size=(50, 3))
    first, second = (SignFlipTest(rows, Clusters(range(50))).p_values() for _ in range(2))
    assert first.tolist() == second.tolist()
    alone = SignFlipTest(rows[:, 1:2], Clusters(range(50))).p_values()
    assert alone.tolist() == first[1:2].tolist()


def test_equal_methods_are_rejected_as_often_as_stated() -> None:
    generator = np.random.default_rng(5)
    for count, pairs in ((10, 2000), (30, 400)):
        sums = generator.normal(size=(count, pairs)) * generator.exponential(size=(count, 1))
        rejected = (SignFlipTest(sums, Clusters(range(count))).p_values() < 0.05).mean()
        assert 0.03 < rejected < 0.08
