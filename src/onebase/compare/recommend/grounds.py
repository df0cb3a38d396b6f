"""What the evidence says for and against a method that may be recommended, in sentences.

All pairs of methods, the base's rows among them, are tested and corrected once. Whether one method is
better than another does therefore not depend on what is asked for.
"""

from collections.abc import Iterable

from onebase.compare.evidence import Evidence
from onebase.compare.metrics.metric_name import metric_name
from onebase.compare.recommend.costs import COSTS, CostName, costs_of
from onebase.language import say
from onebase.quantity import interval, listed, number, plural, signed


def candidates(evidence: Evidence) -> list[str]:
    """The trained methods in the order of the comparison; those that diverged are among them."""
    return [name for name, measured in evidence.methods.items() if measured.trained]


def costs(evidence: Evidence, method: str) -> dict[CostName, float]:
    """What the method takes alone, each cost at its worst over the seeds that measured it."""
    return costs_of(evidence.methods[method].arms)


def runs(evidence: Evidence) -> tuple[str, ...]:
    """The runs that measured all of it."""
    comparison = evidence.comparison
    return tuple(dict.fromkeys([comparison.run, *(arm.run for arm in comparison.arms)]))


def not_beaten(evidence: Evidence, method: str) -> list[str]:
    """The base's rows that a method is not shown to be better than."""
    return [name for name in evidence.references if evidence.beats(method, name) is not True]


def better_than(evidence: Evidence, method: str, among: Iterable[str]) -> list[str]:
    """The methods among these that are better than `method`."""
    return [other for other in among if other != method and evidence.beats(other, method)]


def beats_all(evidence: Evidence, method: str, others: Iterable[str]) -> bool:
    """Whether the method is better than each of these."""
    return all(evidence.beats(method, other) for other in others)


def rests_on(evidence: Evidence, method: str) -> str:
    """The method's quality and what it rests on."""
    found, places = evidence.summary.intervals[method], evidence.places
    value = f"{number(found.mean, places)} {interval(found.low, found.high, places)}"
    metric, rows = metric_name(evidence.metric), evidence.summary.rows
    measured = evidence.methods[method]
    run = listed(dict.fromkeys(arm.run for arm in measured.arms))
    counts, counts_zh = plural(rows, "row", "rows"), f"{rows} 行"
    if measured.trained:
        seeds = len(measured.arms)
        counts += ", " + plural(seeds, "seed", "seeds")
        counts_zh += f"，{seeds} 个随机种子"
    return say(
        f"{method}: {metric} {value}, {counts}, run {run}.",
        f"{method}：{metric} {value}，{counts_zh}，训练 {run}。",
    )


def difference(evidence: Evidence, one: str, other: str) -> str:
    """The paired difference of two methods with its interval: `+0.052 [+0.021, +0.083]`."""
    pair, places = evidence.summary.verdict.pair(one, other), evidence.places
    return f"{signed(pair.difference, places)} {interval(pair.low, pair.high, places, sign=True)}"


def costs_text(evidence: Evidence, method: str) -> str:
    """The measured costs of a method that is trained alone."""
    measured = costs(evidence, method)
    return listed(
        f"{say(*COSTS[name].name)} {COSTS[name].text(value)}" for name, value in measured.items()
    )
