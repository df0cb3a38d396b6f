"""Why a method that was compared is not the one: a sentence for each."""

from collections.abc import Iterable, Sequence

from onebase.compare.evidence import Evidence
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.recommend.costs import COSTS
from onebase.compare.recommend.grounds import better_than, candidates, costs, difference, not_beaten
from onebase.compare.recommend.limits import Limits
from onebase.compare.recommend.picking import Choice
from onebase.compare.recommend.preferences import Preference
from onebase.compare.result import BASE
from onebase.language import say
from onebase.quantity import p_value


def exclusions(evidence: Evidence, limits: Limits) -> dict[str, str]:
    """The methods that do not qualify: a seed diverged, it is not shown to be better than the base's
    rows, or it exceeds a limit.
    """
    found = {}
    for method in candidates(evidence):
        clauses = [
            *_diverged(evidence.methods[method]),
            *_not_better(evidence, method),
            *limits.exceeded(costs(evidence, method)),
        ]
        if clauses:
            found[method] = _sentence(method, clauses)
    return found


def passed_over(
    evidence: Evidence, qualified: Sequence[str], choice: Choice, preference: Preference
) -> dict[str, str]:
    """The methods that qualify and are not chosen: tied with the one that is, or worse than another."""
    found = {}
    for method in qualified:
        if method == choice.method:
            continue
        if method in choice.tied:
            wanted = say(*preference.text)
            clause = say(
                f"tied with {choice.method}, which is preferred for {wanted}",
                f"与 {choice.method} 并列，按“{wanted}”选择了后者",
            )
            found[method] = _sentence(method, [clause])
        else:
            better = better_than(evidence, method, qualified)
            other = choice.method if choice.method in better else better[0]
            clauses = [
                _worse(evidence, method, other),
                *_saving(evidence, method, choice, preference),
            ]
            found[method] = _sentence(method, clauses)
    return found


def useful(evidence: Evidence) -> list[str]:
    """The methods that are sound and better than the base's rows, whatever they cost."""
    return [
        method
        for method in candidates(evidence)
        if not evidence.methods[method].diverged and not not_beaten(evidence, method)
    ]


def _sentence(method: str, clauses: Iterable[str]) -> str:
    text = say("; ", "；").join(clauses)
    return say(f"{method}: {text}.", f"{method}：{text}。")


def _diverged(measured: MeasuredMethod) -> list[str]:
    if not measured.diverged:
        return []
    seeds = len(measured.arms)
    return [
        say(
            f"diverged with {measured.diverged} of {seeds} seeds",
            f"{seeds} 个随机种子中有 {measured.diverged} 个训练发散",
        )
    ]


def _not_better(evidence: Evidence, method: str) -> list[str]:
    """What it has to beat and does not; nothing to say of a method without outcomes."""
    if method not in evidence.summary.intervals:
        return []
    clauses = []
    for reference in not_beaten(evidence, method):
        by = difference(evidence, method, reference)
        what = (
            say("the base with its instruction", "仅用指令的基座")
            if reference == BASE
            else say("the base with examples in its prompt", "提示中带示例的基座")
        )
        clauses.append(
            say(f"worse than {what}, by {by}", f"不如{what}，差值 {by}")
            if evidence.beats(reference, method)
            else say(
                f"not shown to be better than {what}, difference {by}, p {_corrected(evidence, method, reference)} "
                "with Holm's correction",
                f"无法说明它优于{what}，差值 {by}，Holm 校正后 p {_corrected(evidence, method, reference)}",
            )
        )
    return clauses


def _corrected(evidence: Evidence, one: str, other: str) -> str:
    """The corrected p-value of a pair, on which the decision rests: `= 0.140`. The interval beside it is
    that of the pair alone.
    """
    text = p_value(evidence.summary.verdict.pair(one, other).p_holm)
    return text if text.startswith("<") else f"= {text}"


def _worse(evidence: Evidence, method: str, other: str) -> str:
    by = difference(evidence, method, other)
    return say(f"worse than {other}, by {by}", f"不如 {other}，差值 {by}")


def _saving(evidence: Evidence, method: str, choice: Choice, preference: Preference) -> list[str]:
    """What it would save of that which is preferred."""
    its, chosen = costs(evidence, method), costs(evidence, choice.method)
    for name in preference.costs[:1]:
        kind = COSTS[name]
        if name in its and name in chosen and kind.cheaper(its[name], chosen[name]):
            what, one, two = say(*kind.name), kind.text(its[name]), kind.text(chosen[name])
            text = say(
                f"its {what} is {one}, that of {choice.method} {two}",
                f"其{what}为 {one}，{choice.method} 为 {two}",
            )
            return [text]
    return []
