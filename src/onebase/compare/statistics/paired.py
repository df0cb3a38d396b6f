"""Paired tests of all pairs of methods on the same held-out rows, clustered by input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import stdtrit

from onebase.compare.statistics.clusters import Clusters, Floats
from onebase.compare.statistics.sign_flips import SignFlipTest

LEVEL = 0.05  # of the family of all pairs


@dataclass(frozen=True)
class Pair:
    """Two methods on the same rows. `difference` is the mean of `one` minus the mean of `other`, `low`
    and `high` its 95 % interval, `p` the p-value of this pair alone, and `p_holm` the one corrected for
    all pairs.

    The interval excludes 0 exactly if `p` is below .05: both come from the same test. It is not
    corrected, so a pair may have an interval that excludes 0 and still not be `decided`.
    """

    one: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def decided(self) -> bool:
        """Whether the methods differ at the 5 % level, corrected for all pairs."""
        return self.p_holm < LEVEL

    def has(self, method: str) -> bool:
        """Whether the method is one of the two."""
        return method in (self.one, self.other)

    def turned(self) -> "Pair":
        """The same pair with its difference the other way round."""
        return Pair(
            self.other,
            self.one,
            0.0 - self.difference,
            0.0 - self.high,
            0.0 - self.low,
            self.p,
            self.p_holm,
        )


def pairs(
    table: Mapping[str, Sequence[float]],
    clusters: Sequence[int],
    *,
    bounds: tuple[float, float] | None = None,
) -> list[Pair]:
    """All pairs of methods, in the order of the table. `table` has the values of a metric for each method
    over the same rows; `bounds` are the metric's least and largest value.
    """
    names = list(combinations(table, 2))
    if not names:
        return []
    values = {method: np.asarray(table[method], dtype=np.float64) for method in table}
    rows = np.stack([values[one] - values[other] for one, other in names])
    groups = Clusters(clusters)
    test = SignFlipTest(groups.sums(rows).T, groups)
    p_values = test.p_values()
    low, high = test.intervals(LEVEL)
    if bounds is not None:
        low, high = _widened(low, high, rows, groups, bounds[1] - bounds[0])
    corrected = holm(p_values.tolist())
    return [
        Pair(one, other, float(d), float(left), float(right), float(p), p_holm)
        for (one, other), d, left, right, p, p_holm in zip(
            names, test.differences, low, high, p_values, corrected, strict=True
        )
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def _widened(
    low: Floats, high: Floats, rows: Floats, clusters: Clusters, width: float
) -> tuple[Floats, Floats]:
    """The ends of the test, widened where few rows differ: methods that agree on 12 rows may still differ
    on the next one. An end that would cross 0 stays: about 0 the test has decided.
    """
    left, right = added_rows_interval(rows, clusters, width)
    low = np.where((low > 0) & (left <= 0), low, np.minimum(left, low))
    high = np.where((high < 0) & (right >= 0), high, np.maximum(right, high))
    return np.maximum(low, -width), np.minimum(high, width)


def added_rows_interval(rows: Floats, clusters: Clusters, width: float) -> tuple[Floats, Floats]:
    """The interval of mean differences, [pairs, rows] to two [pairs], with two rows added, one for each
    method, that differ as much as the other rows that differ do (Bonett and Price, Journal of
    Educational and Behavioral Statistics 37, 2012), and Student's t over clusters.
    """
    differing = np.maximum((rows != 0).sum(axis=-1), 1)
    size = np.sqrt((rows**2).sum(axis=-1) / differing)
    size = np.where(size > 0, size, width)
    total = clusters.rows + 2
    mean = rows.sum(axis=-1) / total
    squares = (clusters.sums(rows) - clusters.sizes * mean[:, None]) ** 2
    squares_of_two = (size - mean) ** 2 + (size + mean) ** 2
    degrees = clusters.degrees_of_freedom() + 2
    half = stdtrit(degrees, 1 - LEVEL / 2) * np.sqrt(squares.sum(axis=-1) + squares_of_two) / total
    return mean - half, mean + half
