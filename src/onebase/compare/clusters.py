"""Rows of one input are one cluster: sums of clusters, and the variance of a mean over them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Few clusters say little about how much alike the rows of one input are. The estimate of the design effect
# is averaged with that of this correlation, as if PRIOR_CLUSTERS more had shown it; the two were chosen by
# the coverage of intervals at correlations of .1 to .6 (bench/intervals.py).
PRIOR_CORRELATION = 0.22
PRIOR_CLUSTERS = 6.0


class Clusters:
    """`sizes` are the rows of each cluster, in the order of their first rows; `rows` their sum."""

    def __init__(self, clusters: Sequence[int]) -> None:
        names, first, numbers = np.unique(
            np.asarray(clusters), return_index=True, return_inverse=True
        )
        rank = np.empty(len(names), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(names))
        self._order = np.argsort(rank[numbers], kind="stable")
        self.sizes = np.bincount(rank[numbers]).astype(np.float64)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        self.rows = len(numbers)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def single(self) -> bool:
        """Whether every row is a cluster of its own."""
        return len(self) == self.rows

    def sums(self, values: Floats) -> Floats:
        """The sum over the rows of each cluster: [..., rows] to [..., clusters]."""
        return np.asarray(np.add.reduceat(values[..., self._order], self._starts, axis=-1))

    def variance_of_mean(self, sums: Floats) -> Floats:
        """The variance of the mean over all rows, from the sums of the clusters: [..., clusters] to [...].

        CR2 of Bell and McCaffrey (Survey Methodology 28, 2002) for a mean, which is a ratio where the
        clusters differ in size: unbiased where rows are independent. Infinite for a single cluster.
        """
        if len(self) == 1:
            return np.full(sums.shape[:-1], np.inf)
        mean = sums.sum(axis=-1, keepdims=True) / self.rows
        squares = (sums - self.sizes * mean) ** 2 / (1 - self.sizes / self.rows)
        return np.asarray(squares.sum(axis=-1) / self.rows**2)

    def degrees_of_freedom(self, correlation: float = PRIOR_CORRELATION) -> float:
        """Those of that variance, by Satterthwaite, for rows of a cluster with this correlation: as many
        as clusters less one where all have the same size, fewer where a few hold most rows.
        """
        weights = self.sizes * (1 + (self.sizes - 1) * correlation)
        return max(float(weights.sum() ** 2 / (weights**2).sum()) - 1, 0.0)

    @property
    def mean_size(self) -> float:
        """The size of the cluster of a row, averaged over rows; 1 where all rows are single."""
        return float((self.sizes**2).sum() / self.rows)

    def design_effect(self, values: Floats) -> Floats:
        """By how much the variance of the mean is larger than over as many independent rows (Kish):
        [..., rows] to [...]; 1 where all rows are single.
        """
        variance = values.var(axis=-1)
        if self.single:
            return np.ones_like(variance)
        expected = 1 + (self.mean_size - 1) * PRIOR_CORRELATION
        if len(self) == 1:
            return np.full_like(variance, expected)
        seen = self.degrees_of_freedom()
        with np.errstate(invalid="ignore", divide="ignore"):
            observed = self.variance_of_mean(self.sums(values)) * self.rows / variance
        observed = np.where(np.isfinite(observed), observed, expected)
        return np.asarray((seen * observed + PRIOR_CLUSTERS * expected) / (seen + PRIOR_CLUSTERS))
