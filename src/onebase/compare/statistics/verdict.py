"""The verdict for one metric: the best method, and those that the rows cannot tell from it; with all other
statistics of the metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onebase.compare.result import NEUTRAL, Comparison
from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.detectable import DetectableEffect, detectable_effect
from onebase.compare.statistics.intervals import Interval, mean_interval
from onebase.compare.statistics.paired import LEVEL, Pair, pairs
from onebase.compare.statistics.seed_spread import SeedSpread, seed_spread
from onebase.errors import UsageError
from onebase.language import say

Direction = Literal["higher", "lower", "neutral"]
# The least and the largest value of a row. Others, the user's own too, are taken as unbounded.
BOUNDS = {
    "accuracy": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
    "rouge_l": (0.0, 100.0),
    "bleu_4": (0.0, 100.0),
    "chrf": (0.0, 100.0),
}


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
        for pair in self.pairs:
            if {pair.one, pair.other} == {one, other}:
                return pair if pair.one == one else pair.turned()
        raise KeyError((one, other))


def verdict(
    table: Mapping[str, Sequence[float]],
    clusters: Sequence[int],
    *,
    direction: Direction,
    bounds: tuple[float, float] | None = None,
) -> Verdict:
    """The verdict over the values of a metric for each method over the same rows.

    The detectable effect is that of the best method against the others of the tied set (against the
    second where it has no other), in the middle where there are several.
    """
    tests = pairs(table, clusters, bounds=bounds)
    if direction == "neutral" or not table:
        return Verdict(None, (), tuple(tests), None)
    values = {method: np.asarray(table[method], dtype=np.float64) for method in table}
    sign = 1 if direction == "higher" else -1
    ranking = sorted(values, key=lambda method: -sign * float(values[method].mean()))
    best = ranking[0]
    decided = {
        method
        for pair in tests
        if pair.decided
        for method in (pair.one, pair.other)
        if pair.has(best)
    }
    tied = tuple(method for method in ranking if method == best or method not in decided)
    groups = Clusters(clusters)
    effects = [
        detectable_effect(
            values[best] - values[rival], groups, level=LEVEL / len(tests), bounds=bounds
        )
        for rival in tied[1:] or ranking[1:2]
    ]
    effects.sort(key=lambda effect: effect.effect)
    return Verdict(best, tied, tuple(tests), effects[len(effects) // 2] if effects else None)


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
        effect, and seeds that differ by more than the methods do.
        """
        notes = []
        if self.verdict.detectable is not None:
            notes.append(self.verdict.detectable.sentence())
        notes += self._seed_notes()
        return notes

    def _seed_notes(self) -> list[str]:
        best = self.verdict.best
        if best is None or best not in self.seeds:
            return []
        if all(spread.deviation is None for spread in self.seeds.values()):
            return [
                say(
                    "One seed per method: how far seeds differ is not known.",
                    "每种方法只有一个随机种子，种子之间的差异未知。",
                )
            ]
        notes = []
        for method, spread in self.seeds.items():
            if method == best:
                continue
            wider, name = max(
                (self.seeds[best].range, best), (spread.range, method), key=lambda part: part[0]
            )
            difference = abs(self.intervals[best].mean - self.intervals[method].mean)
            if wider > difference:
                notes.append(
                    say(
                        f"The seeds of {name} are {wider:.2g} apart, more than {best} and {method} are "
                        f"({difference:.2g}): other seeds may change their order.",
                        f"{name} 各种子之间相差 {wider:.2g}，大于 {best} 与 {method} 之间的差异"
                        f"（{difference:.2g}）：换用其他种子，两者的先后可能改变。",
                    )
                )
        return notes


def summarise(comparison: Comparison, metric: str) -> MetricSummary:
    """All statistics of one metric of a comparison: one of its metrics by row, or `loss`.

    Raises:
        UsageError: the metric was not measured row by row.
    """
    known = tuple(dict.fromkeys((*comparison.metrics, "loss")))
    if metric not in known:
        raise UsageError(
            say(
                f"{metric!r} is not measured row by row in this comparison.",
                f"本次比较没有逐行测量 {metric!r}。",
            ),
            say(f"Choose one of: {', '.join(known)}.", f"可选：{'、'.join(known)}。"),
        )
    table = {}
    seeds = {}
    for method in comparison.methods:
        arms = comparison.arms_of(method)
        if not arms:
            continue
        by_arm = np.array([comparison.values(arm, metric) for arm in arms])
        table[method] = by_arm.mean(axis=0)
        if arms[0].trained:
            seeds[method] = seed_spread(
                {arm.seed or 0: float(row.mean()) for arm, row in zip(arms, by_arm, strict=True)}
            )
    clusters = comparison.clusters
    bounds = BOUNDS.get(metric)
    direction = _direction(comparison, metric)
    rows = {method: values.tolist() for method, values in table.items()}
    return MetricSummary(
        metric=metric,
        direction=direction,
        rows=len(clusters),
        clusters=len(set(clusters)),
        intervals={
            method: mean_interval(values, clusters, bounds=bounds)
            for method, values in rows.items()
        },
        verdict=verdict(rows, clusters, direction=direction, bounds=bounds),
        seeds=seeds,
    )


def _direction(comparison: Comparison, metric: str) -> Direction:
    if metric in NEUTRAL:
        return "neutral"
    return "higher" if comparison.better(metric, 1.0, 0.0) else "lower"
