"""Clusters: sums, the variance of a mean, degrees of freedom, the design effect."""

import errorbars
import numpy as np
import pytest

from onebase.compare.clusters import PRIOR_CLUSTERS, PRIOR_CORRELATION, Clusters

VALUES = np.array([1.0, 2.0, 4.0, 8.0, 16.0])


def test_sums_are_in_the_order_of_the_first_rows() -> None:
    clusters = Clusters([7, 3, 7, 5, 3])
    assert clusters.sums(VALUES).tolist() == [5, 18, 8]
    assert clusters.sizes.tolist() == [2, 2, 1]
    assert clusters.sums(np.stack([VALUES, -VALUES])).tolist() == [[5, 18, 8], [-5, -18, -8]]
    assert not clusters.single
    assert Clusters([4, 2, 9]).single


def test_variance_of_single_rows_is_the_usual_one() -> None:
    clusters = Clusters(range(5))
    assert clusters.variance_of_mean(clusters.sums(VALUES)) == pytest.approx(VALUES.var(ddof=1) / 5)
    assert clusters.degrees_of_freedom() == pytest.approx(4)


def test_variance_of_equal_clusters_is_that_of_errorbars() -> None:
    values = np.random.default_rng(0).normal(size=30)
    codes = np.repeat(np.arange(10), 3)
    clusters = Clusters(codes.tolist())
    ours = float(clusters.variance_of_mean(clusters.sums(values))) ** 0.5
    assert ours == pytest.approx(errorbars.cluster_robust_se(values, codes))
    assert clusters.degrees_of_freedom() == pytest.approx(9)


def test_variance_of_unequal_clusters_by_hand() -> None:
    # Mean 3; residuals summed: (1 - 3) = -2 of one row, (4 + 4 - 6) = 2 of two rows.
    clusters = Clusters([0, 1, 1])
    sums = clusters.sums(np.array([1.0, 4.0, 4.0]))
    assert clusters.variance_of_mean(sums) == pytest.approx((4 / (2 / 3) + 4 / (1 / 3)) / 9)


def test_unequal_clusters_have_fewer_degrees_of_freedom() -> None:
    equal, unequal = Clusters([0, 0, 1, 1, 2, 2]), Clusters([0, 0, 0, 0, 1, 2])
    assert unequal.degrees_of_freedom() < equal.degrees_of_freedom() == pytest.approx(2)
    # Correlation 1: weights 16, 1, 1.
    assert unequal.degrees_of_freedom(1.0) == pytest.approx(18**2 / 258 - 1)


def test_a_single_cluster_has_no_variance() -> None:
    clusters = Clusters([3, 3])
    assert clusters.variance_of_mean(clusters.sums(VALUES[:2])) == np.inf
    assert clusters.degrees_of_freedom() == 0


def test_design_effect_is_shrunk_towards_the_expected_one() -> None:
    assert Clusters(range(5)).design_effect(VALUES) == 1
    expected = 1 + PRIOR_CORRELATION  # clusters of two rows
    same = Clusters([0, 0, 1, 1, 2, 2])
    assert same.design_effect(np.ones(6)) == pytest.approx(expected)
    # Rows of a cluster are equal: 2, with the correction for 3 clusters 3.
    observed = same.design_effect(np.array([0.0, 0, 1, 1, 0, 0]))
    assert observed == pytest.approx((2 * 3 + PRIOR_CLUSTERS * expected) / (2 + PRIOR_CLUSTERS))
    many = Clusters([row // 2 for row in range(4000)])
    values = np.repeat(np.arange(2000) % 2, 2) * 1.0
    assert many.design_effect(values) == pytest.approx(2, abs=0.01)
