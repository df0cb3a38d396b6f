"""The interval of a mean over held-out rows that holds for few rows and for clustered rows."""

from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in the unit of the metric.

    A side about which the rows say nothing (a single input) is the bound of the metric, or infinite
    where the metric has none.
    """

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[int],
    *,
    bounds: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of the mean of a metric over rows. Rows of one input are one cluster.

    `bounds` are the least and the largest possible value of the metric, such as (0, 1) for accuracy;
    None for a loss.
    """
    raise NotImplementedError
