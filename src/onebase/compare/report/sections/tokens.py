"""Tokens to reach each quality: how fast each method learns."""

import math
import statistics
from collections.abc import Sequence

from onebase.compare.evidence import Evidence
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.report.document import Column, Paragraph, Row, Section, Table
from onebase.language import say
from onebase.quantity import MISSING, joined, number

# The parts of the way from the first loss to the lowest one at which the levels lie.
_WAY = (0.5, 0.75, 0.9, 0.98)


def tokens_section(evidence: Evidence) -> Section:
    """For a few levels of the validation loss, the tokens until each method first falls below it."""
    title = say("Tokens to reach each quality", "达到各质量水平所需的词元数")
    methods = [method for method in evidence.methods.values() if method.trained]
    levels = loss_levels(methods)
    if not levels:
        lead = say("No validation losses were measured.", "没有测量验证损失。")
        return Section("tokens", title, lead)
    order = sorted(methods, key=lambda method: _key(method, levels))
    columns = [Column(say("method", "方法"))]
    columns += [Column(f"≤\u00a0{number(level)}", numeric=True) for level in levels]
    rows = tuple(
        Row((method.name, *(_cell(method.tokens_to(level)) for level in levels)))
        for method in order
    )
    table = Table(
        say(
            "Tokens of training until the validation loss is at most this",
            "验证损失首次不高于该值时的训练词元数",
        ),
        tuple(columns),
        rows,
        say(
            "The median over the seeds, at the first evaluation at or below the level. In brackets: how "
            "many seeds got there, where not all did.",
            "取各种子的中位数，以首次不高于该水平的评估为准；括号内为达到该水平的种子数（仅在部分种子达到时给出）。",
        ),
    )
    return Section("tokens", title, _lead(order, levels), (table, *_evaluations(methods)))


def loss_levels(methods: Sequence[MeasuredMethod]) -> list[float]:
    """Levels of the validation loss between the highest first loss and the lowest loss of all, the
    easiest first; empty where nothing was measured or nothing improved.
    """
    curves = [
        [point.loss for point in arm.curve if math.isfinite(point.loss)]
        for method in methods
        for arm in method.arms
    ]
    first = max((losses[0] for losses in curves if losses), default=0.0)
    best = min((min(losses) for losses in curves if losses), default=0.0)
    if first <= best:
        return []
    # Rounded up to what is printed: the lowest loss is below the last level.
    levels = (math.ceil(1000 * (first - part * (first - best))) / 1000 for part in _WAY)
    return list(dict.fromkeys(levels))


def _key(method: MeasuredMethod, levels: Sequence[float]) -> tuple[float, ...]:
    """Methods that reach the hardest level come first, those with the fewest tokens before others."""
    medians = [_median(method.tokens_to(level)) for level in reversed(levels)]
    return tuple(math.inf if median is None else median for median in medians)


def _median(tokens: Sequence[int | None]) -> float | None:
    """The median over the seeds; None where half of them or more never get there."""
    value = statistics.median(math.inf if count is None else count for count in tokens)
    return value if math.isfinite(value) else None


def _cell(tokens: Sequence[int | None]) -> str:
    known = [count for count in tokens if count is not None]
    median = _median(tokens)
    if median is None:
        return f"{MISSING} ({len(known)}/{len(tokens)})" if known else MISSING
    text = f"{median:,.0f}"
    return text if len(known) == len(tokens) else f"{text} ({len(known)}/{len(tokens)})"


def _lead(methods: Sequence[MeasuredMethod], levels: Sequence[float]) -> str:
    level = levels[-1]
    median = _median(methods[0].tokens_to(level))
    if median is None:
        return say(
            f"No method reaches a validation loss of {number(level)} in most of its seeds.",
            f"没有方法能在多数种子下达到 {number(level)} 的验证损失。",
        )
    names = [method.name for method in methods if _median(method.tokens_to(level)) == median]
    return say(
        f"{joined(names)} {'needs' if len(names) == 1 else 'need'} the fewest tokens to a validation "
        f"loss of {number(level)}: {median:,.0f}.",
        f"{joined(names)} 达到 {number(level)} 的验证损失所需词元最少：{median:,.0f}。",
    )


def _evaluations(methods: Sequence[MeasuredMethod]) -> list[Paragraph]:
    """How fine the scale is: the evaluations of a curve."""
    counts = [len(arm.curve) for method in methods for arm in method.arms if arm.curve]
    few, many = min(counts), max(counts)
    shown = str(few) if few == many else f"{few}–{many}"
    return [
        Paragraph(
            say(
                f"The validation loss was measured {shown} times in each training; between two "
                "evaluations nothing is known.",
                f"每次训练评估验证损失 {shown} 次，两次评估之间的情况未知。",
            )
        )
    ]
