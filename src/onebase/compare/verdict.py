"""The verdict of a comparison for one metric: the best method, and those that the rows cannot tell from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onebase.compare.detectable import DetectableEffect
from onebase.compare.intervals import Interval
from onebase.compare.paired import Pair
from onebase.compare.result import Comparison
from onebase.compare.seed_spread import SeedSpread

Direction = Literal["higher", "lower", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """`tied` are the methods that the rows cannot tell from the best, best mean first; the best is among
    them. `best` is None and `tied` empty for a metric that is neither better nor worse (length).
    """

    best: str | None
    tied: tuple[str, ...]
    pairs: tuple[Pair, ...]
    detectable: DetectableEffect | None

    @property
    def winner(self) -> str | None:
        """The best method if no other is tied with it."""
        return self.tied[0] if len(self.tied) == 1 else None

    def pair(self, one: str, other: str) -> Pair:
        """The pair of these two methods, with its difference as `one` minus `other`."""
        raise NotImplementedError


@dataclass(frozen=True)
class MetricSummary:
    """All statistics of one metric. The values of a row are averaged over the seeds of a method first.

    `intervals` are by method, in the order of the comparison; methods without outcomes (all seeds
    diverged) are missing. `seeds` has the trained methods.
    """

    metric: str
    direction: Direction
    rows: int
    clusters: int
    intervals: Mapping[str, Interval]
    verdict: Verdict
    seeds: Mapping[str, SeedSpread]

    def notes(self) -> list[str]:
        """What a reader has to know beside the numbers, in the current language: the minimum detectable
        effect, seeds that differ by more than the methods do, methods with too few inputs.
        """
        raise NotImplementedError


def verdict(
    table: Mapping[str, Sequence[float]],
    clusters: Sequence[int],
    *,
    direction: Direction,
    bounds: tuple[float, float] | None = None,
) -> Verdict:
    """The verdict over the values of a metric for each method over the same rows."""
    raise NotImplementedError


def summarise(comparison: Comparison, metric: str) -> MetricSummary:
    """All statistics of one metric of a comparison; `metric` is one of its metrics, or `loss`."""
    raise NotImplementedError
