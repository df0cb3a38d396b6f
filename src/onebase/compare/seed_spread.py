"""How far the seeds of a method lie apart: a source of variance of its own, beside the rows."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedSpread:
    """The mean of a metric over all rows, by seed. `deviation` is their standard deviation (with n - 1),
    None with a single seed; `low` and `high` are the least and the largest of them.
    """

    means: Mapping[int, float]
    deviation: float | None
    low: float
    high: float
