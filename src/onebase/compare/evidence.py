"""All that a report rests on: the comparison, its statistics, and what each method took."""

from dataclasses import dataclass, field
from functools import cached_property

from onebase.compare.measured_method import MeasuredMethod, measured_methods
from onebase.compare.result import Comparison
from onebase.compare.statistics.verdict import MetricSummary, summarise
from onebase.quantity import decimals


@dataclass(frozen=True)
class Evidence:
    """A comparison with the statistics of the metric that decides."""

    comparison: Comparison
    summary: MetricSummary
    methods: dict[str, MeasuredMethod] = field(default_factory=dict)

    @classmethod
    def of(cls, comparison: Comparison) -> "Evidence":
        """The evidence of a comparison."""
        summary = summarise(comparison, comparison.metric)
        return cls(comparison, summary, measured_methods(comparison))

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.summary.metric

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower value of the metric is better."""
        return self.summary.direction == "lower"

    @cached_property
    def ranked(self) -> list[str]:
        """The methods with outcomes, best mean first; in the order of the comparison where the metric
        has no better and worse.
        """
        names = list(self.summary.intervals)
        if self.summary.direction == "neutral":
            return names
        sign = 1 if self.lower_is_better else -1
        return sorted(names, key=lambda name: sign * self.summary.intervals[name].mean)

    @property
    def trained(self) -> list[str]:
        """The trained methods among them, best mean first."""
        return [name for name in self.ranked if self.methods[name].trained]

    @property
    def references(self) -> list[str]:
        """The base's rows among them."""
        return [name for name in self.ranked if not self.methods[name].trained]

    @property
    def diverged(self) -> list[str]:
        """The methods of which no seed has outcomes."""
        return [name for name in self.methods if name not in self.summary.intervals]

    @cached_property
    def places(self) -> int:
        """How many decimals the metric is shown with."""
        return decimals(interval.mean for interval in self.summary.intervals.values())

    def mean(self, method: str) -> float:
        """The mean of the metric over the held-out rows and the seeds."""
        return self.summary.intervals[method].mean

    def beats(self, one: str, other: str) -> bool | None:
        """Whether the rows show that `one` is better than `other` (True) or worse (False); None where
        they do not decide, or one of the two was not measured.
        """
        known = self.summary.intervals
        if one not in known or other not in known or self.summary.direction == "neutral":
            return None
        pair = self.summary.verdict.pair(one, other)
        if not pair.decided:
            return None
        return (pair.difference < 0) == self.lower_is_better and pair.difference != 0

    def standing(self, method: str) -> str:
        """`winner`, `tied` or nothing."""
        verdict = self.summary.verdict
        if verdict.winner == method:
            return "winner"
        return "tied" if method in verdict.tied else ""


def front(points: dict[str, tuple[float, float]], *, lower_is_better: bool) -> list[str]:
    """The Pareto front of points (cost, metric): no other point is as cheap and as good, and better in
    one of the two. Cheapest first.
    """
    sign = 1 if lower_is_better else -1
    found: list[str] = []
    last: float | None = None
    for name, (_, value) in sorted(
        points.items(), key=lambda item: (item[1][0], sign * item[1][1])
    ):
        if last is None or sign * value < sign * last:
            found.append(name)
            last = value
    return found
