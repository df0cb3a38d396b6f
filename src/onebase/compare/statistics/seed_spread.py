"""How far the seeds of a method lie apart: a source of variance of its own, beside the rows."""

import statistics
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

    @property
    def range(self) -> float:
        """The largest less the least."""
        return self.high - self.low


def seed_spread(means: Mapping[int, float]) -> SeedSpread:
    """The spread of the means of a method, by seed; at least one."""
    values = list(means.values())
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return SeedSpread(dict(means), deviation, min(values), max(values))
