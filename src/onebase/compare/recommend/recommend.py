"""The method to train, from what was measured: constraints and a preference in, a decision with its reasons out."""

from collections.abc import Sequence

from onebase.compare.evidence import Evidence
from onebase.compare.recommend.caveats import caveats
from onebase.compare.recommend.declining import (
    declined,
    nothing_measured,
    unfounded,
    without_method,
)
from onebase.compare.recommend.earlier import joined
from onebase.compare.recommend.exclusion import exclusions, passed_over
from onebase.compare.recommend.grounds import candidates, costs_text, difference, rests_on, runs
from onebase.compare.recommend.next_command import asked_of, recommend_command, train_command
from onebase.compare.recommend.picking import Choice, choose
from onebase.compare.recommend.preferences import PREFERENCES
from onebase.compare.recommend.recommendation import Planner, Question, Recommendation
from onebase.compare.result import Comparison
from onebase.language import say
from onebase.quantity import listed


def recommend(
    comparisons: Sequence[Comparison], question: Question, planner: Planner | None = None
) -> Recommendation:
    """The recommendation that these comparisons, newest last, support.

    A method qualifies if its own measurements keep to every limit and it is shown to be better than the
    base's rows. Those to which no other is shown to be better are tied; the preference picks among them.
    """
    of_task = [
        item
        for item in comparisons
        if question.task in (None, item.task) and question.base in (None, item.base)
    ]
    tasks = list(dict.fromkeys(item.task for item in of_task))
    if not tasks:
        return nothing_measured(comparisons, question, planner)
    if len(tasks) > 1:
        return _which_task(tasks, question)
    found = joined(of_task)
    return decide(Evidence.of(found.comparison), question, planner, found.notes)


def _which_task(tasks: Sequence[str], question: Question) -> Recommendation:
    names, newest = listed(tasks), tasks[-1]
    reason = say(
        f"{len(tasks)} tasks were compared here: {names}. Name one with --task.",
        f"这里对比过 {len(tasks)} 个任务：{names}。请用 --task 指定一个。",
    )
    again = recommend_command(
        newest, question.base, question.limits, question.preference, question.workspace
    )
    return declined([reason], (), again)


def decide(
    evidence: Evidence,
    question: Question,
    planner: Planner | None = None,
    notes: Sequence[str] = (),
) -> Recommendation:
    """The recommendation that the evidence of one comparison supports; `notes` join its reasons."""
    notes = [*caveats(evidence, question.machine), *notes]
    if problem := unfounded(evidence, question, planner, notes):
        return problem
    excluded = exclusions(evidence, question.limits)
    qualified = [method for method in candidates(evidence) if method not in excluded]
    if not qualified:
        return without_method(evidence, excluded, question, planner, notes)
    preference = PREFERENCES[question.preference]
    choice = choose(evidence, qualified, preference)
    excluded |= passed_over(evidence, qualified, choice, preference)
    asked = asked_of(evidence.comparison)
    settings = dict(evidence.methods[choice.method].arms[0].settings)
    return Recommendation(
        decision="method",
        method=choice.method,
        settings=settings,
        reasons=(*_grounds(evidence, choice), *excluded.values(), *notes),
        runs=runs(evidence),
        next=train_command(asked, choice.method, settings, question.workspace),
        tied=choice.tied,
        excluded=excluded,
    )


def _grounds(evidence: Evidence, choice: Choice) -> list[str]:
    """What speaks for the method: its quality beside the base's, how it was picked, what it costs."""
    method = choice.method
    gains = listed(
        f"{reference} ({difference(evidence, method, reference)})"
        for reference in evidence.references
    )
    reasons = [
        rests_on(evidence, method),
        say(f"{method} is better than {gains}.", f"{method} 优于 {gains}。"),
        *choice.steps,
    ]
    if costs := costs_text(evidence, method):
        reasons.append(
            say(
                f"{method} alone, at its worst over the seeds measured: {costs}.",
                f"{method} 单独训练，取所测随机种子中最差的值：{costs}。",
            )
        )
    return reasons
