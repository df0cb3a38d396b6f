"""Held-out answers side by side: the best, the worst, and those that differ most between methods."""

import statistics
from collections.abc import Callable, Sequence

from onebase.compare.evidence import Evidence
from onebase.compare.metrics.metric_name import metric_name
from onebase.compare.report.document import Block, Column, Facts, Group, Mark, Row, Section, Table
from onebase.compare.result import Arm
from onebase.language import say
from onebase.quantity import decimals, listed, number

_EACH = 4  # rows of a kind
_LONGEST = 600  # characters that are shown of a text


def answers_section(evidence: Evidence) -> Section:
    """Rows of the three kinds with every method's answer. A row is shown once."""
    title = say("Answers side by side", "答案对照")
    arms = _arms(evidence)
    trained = [arm for arm in arms if arm.trained]
    if not trained:
        return Section("answers", title, say("There are no answers.", "没有答案。"))
    scores = {arm.method: _scores_of(arm, evidence.metric) for arm in arms}
    rows = range(len(evidence.comparison.held_out))
    sign = -1 if evidence.lower_is_better else 1
    means = [sign * statistics.fmean(scores[arm.method][row] for arm in trained) for row in rows]
    apart = [_range([scores[arm.method][row] for arm in trained]) for row in rows]
    answers = [len({arm.outcomes[row].answer for arm in trained}) for row in rows]
    losses = [statistics.fmean(arm.outcomes[row].loss for arm in trained) for row in rows]

    each = min(_EACH, max(1, len(rows) // 3))
    shown: set[int] = set()
    groups: list[Block] = []

    def group(text: str, chosen: Sequence[int]) -> None:
        shown.update(chosen)
        cards = tuple(_card(evidence, arms, scores, row) for row in chosen)
        if cards:
            groups.append(Group(text, cards))

    def first(key: Callable[[int], tuple[float, ...]]) -> list[int]:
        return sorted((row for row in rows if row not in shown), key=key)[:each]

    different = first(lambda row: (-apart[row], -answers[row], row))
    group(
        say("Most different", "分歧最大"),
        [row for row in different if apart[row] > 0 or answers[row] > 1],
    )
    group(say("Worst", "最差"), first(lambda row: (means[row], -losses[row], row)))
    group(say("Best", "最好"), first(lambda row: (-means[row], losses[row], row)))
    return Section("answers", title, _lead(trained, answers), tuple(groups))


def _arms(evidence: Evidence) -> list[Arm]:
    """The arm of each method whose answers are shown: its first seed that did not diverge."""
    comparison = evidence.comparison
    return [comparison.arms_of(name)[0] for name in (*evidence.trained, *evidence.references)]


def _scores_of(arm: Arm, metric: str) -> list[float]:
    """The metric of each row as its own number: the loss of a row is per token."""
    if metric == "loss":
        return [outcome.loss for outcome in arm.outcomes]
    return [outcome.scores[metric] for outcome in arm.outcomes]


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _lead(trained: Sequence[Arm], answers: Sequence[int]) -> str:
    differ = sum(count > 1 for count in answers)
    seeds = sorted({arm.seed for arm in trained if arm.seed is not None})
    shown = "/".join(map(str, seeds))
    return say(
        f"The trained methods give different answers to {differ} of {len(answers)} held-out rows "
        f"(shown: seed {shown}; outcomes.jsonl has all answers).",
        f"在 {len(answers)} 行留出数据中，各训练方法对 {differ} 行给出了不同的答案（此处展示种子 {shown} 的"
        "答案，全部答案见 outcomes.jsonl）。",
    )


def _card(
    evidence: Evidence, arms: Sequence[Arm], scores: dict[str, list[float]], row: int
) -> Group:
    held_out = evidence.comparison.held_out[row]
    sign = -1 if evidence.lower_is_better else 1
    methods: dict[str, list[str]] = {}
    values: dict[str, list[float]] = {}
    for arm in arms:
        answer = arm.outcomes[row].answer
        methods.setdefault(answer, []).append(arm.method)
        values.setdefault(answer, []).append(scores[arm.method][row])
    every = [value for found in values.values() for value in found]
    places, low, high = decimals(every), min(every), max(every)
    best, worst = (high, low) if sign > 0 else (low, high)

    def mark(found: Sequence[float]) -> Mark:
        if best == worst:
            return ""
        return "good" if best in found else "bad" if worst in found else ""

    rows = tuple(
        Row(
            (listed(methods[answer]), _cut(answer), _scores(values[answer], places)),
            mark(values[answer]),
        )
        for answer in sorted(methods, key=lambda answer: -sign * statistics.fmean(values[answer]))
    )
    place = f"{held_out.file}:{held_out.line}"
    return Group(
        place,
        (
            Facts(
                (
                    (say("Input", "输入"), _cut(held_out.input)),
                    (say("Reference", "参考答案"), _cut(held_out.reference)),
                )
            ),
            Table(
                say(f"Answers to {place}", f"{place} 的答案"),
                (
                    Column(say("methods", "方法")),
                    Column(say("answer", "答案")),
                    Column(metric_name(evidence.metric), numeric=True),
                ),
                rows,
            ),
        ),
    )


def _scores(values: Sequence[float], places: int) -> str:
    """The score of an answer; a range where it differs between methods, as a loss does."""
    low, high = number(min(values), places), number(max(values), places)
    return low if low == high else f"{low}–{high}"


def _cut(text: str) -> str:
    """A text as it is shown: where it is long, its beginning."""
    if not text.strip():
        return say("(empty)", "（空）")
    if len(text) <= _LONGEST:
        return text
    left = len(text) - _LONGEST
    return text[:_LONGEST] + say(f" … ({left:,} more characters)", f"……（还有 {left:,} 个字符）")
