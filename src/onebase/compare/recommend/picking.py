"""The choice among methods that qualify: those that the rows cannot tell apart, and which of them is picked."""

from collections.abc import Sequence
from dataclasses import dataclass

from onebase.compare.evidence import Evidence
from onebase.compare.recommend.costs import COSTS, CostName, pareto, times_undercut
from onebase.compare.recommend.grounds import beats_all, better_than, costs
from onebase.compare.recommend.preferences import Preference
from onebase.language import say
from onebase.quantity import listed, plural


@dataclass(frozen=True)
class Choice:
    """The method that is picked, those that it is `tied` with (best mean first, itself among them), and
    the sentences that say how it was picked.
    """

    method: str
    tied: tuple[str, ...]
    steps: tuple[str, ...]


def choose(evidence: Evidence, methods: Sequence[str], preference: Preference) -> Choice:
    """One of `methods`, at least one. Tied are those to which no other of them is shown to be better.

    A limit that is raised adds methods and takes none away. The method chosen then is therefore never
    shown to be worse than the one chosen before.
    """
    tied = [method for method in methods if not better_than(evidence, method, methods)]
    tied.sort(key=evidence.mean, reverse=not evidence.lower_is_better)
    if len(tied) == 1:
        return Choice(tied[0], (tied[0],), (_alone(evidence, tied[0], methods),))
    names, rows = listed(tied), evidence.summary.rows
    equal = say(
        f"{names} cannot be told apart on {plural(rows, 'row', 'rows')}.",
        f"在 {rows} 行数据上无法区分 {names}。",
    )
    left: list[str] = tied
    steps: list[str] = []
    if preference.pick == "balance":
        left, steps = _balanced(evidence, tied, preference.costs)
    elif preference.pick == "cheapest":
        left, steps = _cheapest(evidence, tied, preference.costs)
    if len(left) > 1:
        steps = [*steps, _best_mean(left)]
    return Choice(left[0], tuple(tied), (equal, *steps))


def _alone(evidence: Evidence, method: str, methods: Sequence[str]) -> str:
    others = [other for other in methods if other != method]
    if not others:
        return say(f"No method but {method} qualifies.", f"只有 {method} 符合条件。")
    if beats_all(evidence, method, others):
        return say(
            f"{method} is better than every other method that qualifies: {listed(others)}.",
            f"{method} 优于其他所有符合条件的方法：{listed(others)}。",
        )
    return say(
        f"Of those that qualify, {method} is the only one that no other is better than.",
        f"在符合条件的方法中，只有 {method} 不逊于任何其他方法。",
    )


def _best_mean(methods: Sequence[str]) -> str:
    names, method = listed(methods), methods[0]
    return say(
        f"Of {names}, {method} has the best mean; the rows do not show that it is better.",
        f"在 {names} 中，{method} 的均值最好，但这些数据不足以说明它更好。",
    )


def _cheapest(
    evidence: Evidence, tied: Sequence[str], names: Sequence[CostName]
) -> tuple[list[str], list[str]]:
    """The cheapest by the costs in their order, and how that came."""
    left, steps = list(tied), []
    for name in names:
        if len(left) == 1:
            break
        known = {method: costs(evidence, method) for method in left}
        measured = {method: its[name] for method, its in known.items() if name in its}
        if measured:
            kept = COSTS[name].cheapest(measured)
            steps.append(_compared(name, kept, measured, left))
            left = kept
        else:
            what = say(*COSTS[name].name)
            steps.append(say(f"Their {what} was not measured.", f"未测量它们的{what}。"))
    return left, steps


def _compared(
    name: CostName, kept: Sequence[str], measured: dict[str, float], left: Sequence[str]
) -> str:
    """Which methods are the cheapest by one cost, with the numbers of all."""
    kind = COSTS[name]
    ordered = sorted(measured, key=lambda method: measured[method], reverse=kind.more_is_better)
    values = [f"{method} {kind.text(measured[method])}" for method in ordered]
    unknown = say("not measured", "未测量")
    values += [f"{method} {unknown}" for method in left if method not in measured]
    numbers, best, names = listed(values), say(*kind.superlative), listed(kept)
    if len(kept) == 1:
        return say(f"{names} has {best}: {numbers}.", f"{names} 的{best}：{numbers}。")
    if kind.noise:
        share = f"{100 * kind.noise:.0f} %"
        return say(
            f"{names} are within {share} of {best}: {numbers}.",
            f"{names} 与{best}者相差不超过 {share}：{numbers}。",
        )
    return say(f"{names} share {best}: {numbers}.", f"{names} 同为{best}：{numbers}。")


def _balanced(
    evidence: Evidence, tied: Sequence[str], names: Sequence[CostName]
) -> tuple[list[str], list[str]]:
    """Of the Pareto front of the costs, the methods that are the least often undercut."""
    table = {method: costs(evidence, method) for method in tied}
    front, steps = pareto(table, names), []
    what = listed(say(*COSTS[name].name) for name in names)
    if out := listed(method for method in tied if method not in front):
        steps.append(
            say(
                f"Left out, because another is cheaper and in none of {what} more expensive: {out}.",
                f"排除 {out}：就{what}而言，另有方法至少一项更省，且没有一项更费。",
            )
        )
    undercut = {method: times_undercut(method, table, names) for method in front}
    counts = listed(f"{method} {undercut[method]}" for method in front)
    steps.append(
        say(
            f"How often another one is clearly cheaper in {what}, the fewest being best: {counts}.",
            f"按{what}计，有其他方法明显更省的次数（越少越好）：{counts}。",
        )
    )
    return [method for method in front if undercut[method] == min(undercut.values())], steps
