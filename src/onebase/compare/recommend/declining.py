"""Recommendations that name no method: why, and what to run instead, with what that takes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onebase.adapters.full import FULL
from onebase.adapters.methods import METHODS
from onebase.compare.evidence import Evidence
from onebase.compare.metrics.metric_name import metric_name
from onebase.compare.recommend.exclusion import useful
from onebase.compare.recommend.grounds import candidates, costs, rests_on, runs
from onebase.compare.recommend.next_command import (
    Asked,
    asked_of,
    compare_command,
    recommend_command,
)
from onebase.compare.recommend.recommendation import Planner, Question, Recommendation
from onebase.compare.result import BASE, Comparison
from onebase.language import say
from onebase.quantity import duration, listed, size


def declined(
    reasons: Sequence[str],
    runs: Sequence[str],
    command: str,
    excluded: Mapping[str, str] | None = None,
) -> Recommendation:
    """No method, for these reasons."""
    return Recommendation(
        "declined", None, {}, tuple(reasons), tuple(runs), command, excluded=excluded or {}
    )


def nothing_measured(
    comparisons: Sequence[Comparison], question: Question, planner: Planner | None
) -> Recommendation:
    """The decline where no comparison is of the task and the base that are asked for."""
    same_task = [item for item in comparisons if question.task in (None, item.task)]
    task, known = question.task, question.known
    if same_task:
        newest = same_task[-1]
        bases = listed(dict.fromkeys(item.base for item in same_task))
        reason = say(
            f"{newest.task} was compared on {bases}, not on {question.base}.",
            f"{newest.task} 只在 {bases} 上对比过，没有在 {question.base} 上对比。",
        )
        asked = replace(asked_of(newest), base=question.base)
    else:
        asked = known or Asked(task or "TASK", "FILE")
        asked = replace(asked, base=question.base or asked.base)
        if comparisons:
            names = listed(dict.fromkeys(item.task for item in comparisons))
            reason = say(
                f"{task} was not compared in this workspace. Compared: {names}.",
                f"此工作区中没有 {task} 的对比。已对比：{names}。",
            )
        else:
            reason = say(
                "Nothing was compared in this workspace, and a recommendation rests on measurements.",
                "此工作区中还没有对比，而推荐只依据实测。",
            )
    known_data = bool(same_task) or known is not None
    cost = _planned(planner, asked, ()) if known_data else []
    return declined([reason, *cost], (), compare_command(asked, (), question.workspace))


def unfounded(
    evidence: Evidence, question: Question, planner: Planner | None, notes: Sequence[str]
) -> Recommendation | None:
    """The decline where a comparison can decide nothing: no method in it, no row of the bare base, or a
    metric that is neither better nor worse. None where it can.
    """
    metric = metric_name(evidence.metric)
    if not candidates(evidence):
        reason = say("No method was compared.", "没有对比任何方法。")
    elif BASE not in evidence.references:
        reason = say(
            "The bare base was not measured, so no method is shown to be better than it.",
            "没有测量基座本身，无法说明任何方法优于它。",
        )
    elif evidence.summary.direction == "neutral":
        reason = say(
            f"The comparison was decided by {metric}, which is neither better nor worse.",
            f"该对比以{metric}为准，而它没有优劣之分。",
        )
    else:
        return None
    asked = asked_of(evidence.comparison)
    return declined(
        [reason, *notes, *_planned(planner, asked, ())],
        runs(evidence),
        compare_command(asked, (), question.workspace),
    )


def without_method(
    evidence: Evidence,
    excluded: Mapping[str, str],
    question: Question,
    planner: Planner | None,
    notes: Sequence[str],
) -> Recommendation:
    """The decline where no method qualifies: the limits rule out those that are better than the base, or
    none is.
    """
    better = useful(evidence)
    if not better:
        return _no_gain(evidence, excluded, question, planner, notes)
    limits, asked = question.limits, asked_of(evidence.comparison)
    nearest = min(better, key=lambda method: limits.overshoot(costs(evidence, method)))
    reasons = [
        say(
            "No method that is better than the base is known to keep to the limits. The nearest is "
            f"{excluded[nearest]}",
            f"优于基座的方法中，没有一个可以确认满足限制。最接近的是 {excluded[nearest]}",
        ),
        rests_on(evidence, nearest),
        *(text for method, text in excluded.items() if method != nearest),
    ]
    measured = costs(evidence, nearest)
    unmeasured = any(name not in measured for name in limits.given())
    # Full fine-tuning needs the most memory, so it cannot help to meet a limit.
    untried = [name for name in METHODS if name not in evidence.methods and name != FULL]
    if not untried and not unmeasured:
        raised = limits.raised_to(measured)
        again = recommend_command(
            asked.task, question.base, raised, question.preference, question.workspace
        )
        return declined([*reasons, *notes], runs(evidence), again, excluded)
    methods = () if unmeasured else untried
    return declined(
        [*reasons, *notes, *_planned(planner, asked, methods)],
        runs(evidence),
        compare_command(asked, methods, question.workspace),
        excluded,
    )


def _no_gain(
    evidence: Evidence,
    excluded: Mapping[str, str],
    question: Question,
    planner: Planner | None,
    notes: Sequence[str],
) -> Recommendation:
    """The decline where training is not shown to help."""
    asked = asked_of(evidence.comparison)
    reasons = [
        say(
            "Do not train on this evidence: no method is shown to be better than the base.",
            "依据现有数据不建议训练：没有任何方法被证明优于基座。",
        ),
        *(rests_on(evidence, reference) for reference in evidence.references),
        *excluded.values(),
        *notes,
        say(
            "Compare again with more rows, which show smaller differences, or with other settings.",
            "请用更多数据（可分辨更小的差异）或换用其他设置，重新对比。",
        ),
    ]
    reasons += _planned(planner, asked, ())
    return declined(
        reasons, runs(evidence), compare_command(asked, (), question.workspace), excluded
    )


def _planned(planner: Planner | None, asked: Asked, methods: Sequence[str]) -> list[str]:
    """The estimated time and memory of that comparison as a sentence; empty without an estimate."""
    cost = planner(asked, methods) if planner else None
    if cost is None:
        return []
    names, memory = listed(cost.methods), size(cost.memory_bytes)
    if cost.seconds is None:
        return [
            say(
                f"By the estimate of onebase plan, one training of {names} together takes at least "
                f"{memory} of memory.",
                f"据 onebase plan 估计，一起训练一次 {names} 至少需要 {memory} 内存。",
            )
        ]
    time = duration(cost.seconds)
    return [
        say(
            f"By the estimate of onebase plan, one training of {names} together takes {time} and "
            f"{memory} at the peak; each further seed takes as long again.",
            f"据 onebase plan 估计，一起训练一次 {names} 需 {time}，峰值内存 {memory}；"
            "每多一个随机种子，时间再加一份。",
        )
    ]
