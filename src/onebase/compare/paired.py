"""Paired tests of all pairs of methods on the same held-out rows, clustered by input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def pairs(
    table: Mapping[str, Sequence[float]],
    clusters: Sequence[int],
    *,
    bounds: tuple[float, float] | None = None,
) -> list[Pair]:
    """All pairs of methods, in the order of the table. `table` has the values of a metric for each method
    over the same rows; `bounds` are the metric's least and largest value.
    """
    raise NotImplementedError
