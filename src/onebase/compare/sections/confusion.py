"""Confusion matrices of a classification: which label each method takes for which."""

from collections import Counter
from collections.abc import Sequence

from onebase.compare.document import Block, Column, Group, Row, Section, Table
from onebase.compare.evidence import Evidence
from onebase.compare.quantity import MISSING, plural
from onebase.language import say

_WIDEST = 12  # labels of a matrix; with more, the most frequent confusions are listed
_LISTED = 15

Confusion = Counter[tuple[str, str]]


def confusion_section(evidence: Evidence) -> Section | None:
    """The confusions of every method, its seeds together; None for a generation."""
    comparison = evidence.comparison
    if comparison.kind != "classification" or not evidence.ranked:
        return None
    confusions = {name: confusion(evidence, name) for name in evidence.ranked}
    labels = list(dict.fromkeys(row.reference for row in comparison.held_out))
    # An answer that is no reference of any row has a column of its own.
    answers = sorted({answer for counts in confusions.values() for _, answer in counts})
    columns = [*labels, *(answer for answer in answers if answer not in labels)]
    if len(columns) <= _WIDEST:
        blocks = [
            Group(name, (_matrix(name, confusions[name], labels, columns),), detail=True)
            for name in evidence.ranked
        ]
    else:
        blocks = [
            Group(name, (_most_confused(name, confusions[name]),), detail=True)
            for name in evidence.ranked
        ]
    shown: tuple[Block, ...] = tuple(blocks)
    return Section(
        "confusion", say("Confusion matrices", "混淆矩阵"), _lead(evidence, confusions), shown
    )


def confusion(evidence: Evidence, method: str) -> Confusion:
    """How often each (reference, answer) occurred, over the rows and seeds of a method."""
    comparison = evidence.comparison
    return Counter(
        (row.reference, outcome.answer)
        for arm in comparison.arms_of(method)
        for row, outcome in zip(comparison.held_out, arm.outcomes, strict=True)
    )


def _wrong(counts: Confusion) -> list[tuple[tuple[str, str], int]]:
    """The confusions alone, the most frequent first."""
    wrong = [(pair, count) for pair, count in counts.items() if pair[0] != pair[1]]
    return sorted(wrong, key=lambda item: (-item[1], item[0]))


def _lead(evidence: Evidence, confusions: dict[str, Confusion]) -> str:
    method = evidence.ranked[0]
    wrong = _wrong(confusions[method])
    if not wrong:
        return say(f"{method} confuses no label.", f"{method} 没有混淆任何标签。")
    (reference, answer), count = wrong[0]
    total = sum(confusions[method].values())
    return say(
        f"{method} most often takes “{reference}” for “{answer}”: {plural(count, 'answer', 'answers')} "
        f"of {total:,}.",
        f"{method} 最常把“{reference}”判为“{answer}”：{total:,} 个答案中有 {count} 个。",
    )


def _matrix(method: str, counts: Confusion, labels: Sequence[str], columns: Sequence[str]) -> Table:
    rows = tuple(
        Row((label, *(str(counts[label, answer] or "·") for answer in columns))) for label in labels
    )
    return Table(
        say(
            f"{method}: references in rows, answers in columns",
            f"{method}：行为参考标签，列为回答",
        ),
        (
            Column(say("reference", "参考标签")),
            *(Column(answer, numeric=True) for answer in columns),
        ),
        rows,
    )


def _most_confused(method: str, counts: Confusion) -> Table:
    wrong = _wrong(counts)
    rows = tuple(
        Row((reference, answer, str(count))) for (reference, answer), count in wrong[:_LISTED]
    )
    left = len(wrong) - len(rows)
    return Table(
        say(f"{method}: the most frequent confusions", f"{method}：最常见的混淆"),
        (
            Column(say("reference", "参考标签")),
            Column(say("answer", "回答")),
            Column(say("count", "次数"), numeric=True),
        ),
        rows or (Row((MISSING, MISSING, "0")),),
        say(f"{left} more pairs are not shown.", f"另有 {left} 对未列出。") if left else "",
    )
