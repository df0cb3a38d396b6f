"""Confusion matrices of a classification: which label each method takes for which."""

from onebase.compare.evidence import Evidence
from onebase.compare.metrics.classification import ConfusionMatrix
from onebase.compare.report.document import Block, Column, Group, Row, Section, Table
from onebase.language import say
from onebase.quantity import MISSING, plural

_WIDEST = 12  # labels of a matrix; with more, the most frequent confusions are listed
_LISTED = 15


def confusion_section(evidence: Evidence) -> Section | None:
    """The confusions of every method, its seeds together; None for a generation."""
    if evidence.comparison.kind != "classification" or not evidence.ranked:
        return None
    matrices = {name: _matrix_of(evidence, name) for name in evidence.ranked}
    wide = max(len(matrix.labels) for matrix in matrices.values()) > _WIDEST
    table = _most_confused if wide else _whole
    blocks: list[Block] = [
        Group(name, (table(name, matrix),), detail=True) for name, matrix in matrices.items()
    ]
    lead = _lead(evidence.ranked[0], matrices[evidence.ranked[0]])
    return Section("confusion", say("Confusion matrices", "混淆矩阵"), lead, tuple(blocks))


def _matrix_of(evidence: Evidence, method: str) -> ConfusionMatrix:
    """The matrix over the rows and seeds of a method, the labels in the order of the rows."""
    rows = evidence.comparison.held_out
    arms = evidence.comparison.arms_of(method)
    labels = list(dict.fromkeys(row.reference for row in rows))
    answers = [outcome.answer for arm in arms for outcome in arm.outcomes]
    return ConfusionMatrix.of(answers, [row.reference for row in rows] * len(arms), labels)


def _wrong(matrix: ConfusionMatrix) -> list[tuple[int, str, str]]:
    """The confusions: count, reference and answer; the most frequent first."""
    wrong = [
        (count, reference, answer)
        for reference, counts in zip(matrix.labels, matrix.counts, strict=True)
        for answer, count in zip(matrix.labels, counts, strict=True)
        if count and reference != answer
    ]
    return sorted(wrong, key=lambda item: (-item[0], *item[1:]))


def _lead(method: str, matrix: ConfusionMatrix) -> str:
    wrong = _wrong(matrix)
    if not wrong:
        return say(f"{method} confuses no label.", f"{method} 没有混淆任何标签。")
    count, reference, answer = wrong[0]
    total = sum(map(sum, matrix.counts))
    return say(
        f"{method} most often takes “{reference}” for “{answer}”: {plural(count, 'answer', 'answers')} "
        f"of {total:,}.",
        f"{method} 最常把“{reference}”判为“{answer}”：{total:,} 个答案中有 {count} 个。",
    )


def _whole(method: str, matrix: ConfusionMatrix) -> Table:
    rows = tuple(
        Row((label, *(str(count or "·") for count in counts)))
        for label, counts in zip(matrix.labels, matrix.counts, strict=True)
        if any(counts)  # a label that is only ever predicted has a column but no row
    )
    return Table(
        say(
            f"{method}: references in rows, answers in columns", f"{method}：行为参考标签，列为回答"
        ),
        (
            Column(say("reference", "参考标签")),
            *(Column(label, numeric=True) for label in matrix.labels),
        ),
        rows,
    )


def _most_confused(method: str, matrix: ConfusionMatrix) -> Table:
    wrong = _wrong(matrix)
    rows = tuple(
        Row((reference, answer, str(count))) for count, reference, answer in wrong[:_LISTED]
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
