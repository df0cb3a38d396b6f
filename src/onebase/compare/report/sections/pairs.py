"""All pairs of methods: the difference on the same rows, and whether it is decided."""

from collections.abc import Sequence
from itertools import combinations

from onebase.compare.evidence import Evidence
from onebase.compare.metrics.metric_name import metric_in_chinese, metric_name
from onebase.compare.report.document import Block, Column, Group, Paragraph, Row, Section, Table
from onebase.compare.statistics.paired import Pair
from onebase.language import say
from onebase.quantity import interval, p_value, plural, signed


def pairs_section(evidence: Evidence) -> Section:
    """Two tables, the better mean first: the pairs with the best method, and all others."""
    pairs = [
        evidence.summary.verdict.pair(one, other) for one, other in combinations(evidence.ranked, 2)
    ]
    decided = sum(pair.decided for pair in pairs)
    lead = say(
        f"Of {plural(len(pairs), 'pair', 'pairs')}, {decided} differ at the 5 % level after "
        f"correction; {len(pairs) - decided} are not decided.",
        f"共 {len(pairs)} 对方法，校正后在 5 % 水平上有差异的有 {decided} 对，未决的有 "
        f"{len(pairs) - decided} 对。",
    )
    best = evidence.summary.verdict.best
    if best is None:
        blocks: list[Block] = (
            [_table(evidence, pairs, say("All pairs", "所有配对"))] if pairs else []
        )
        return Section("pairs", say("All pairs", "两两比较"), lead, tuple(blocks))
    with_best = [pair for pair in pairs if pair.has(best)]
    others = [pair for pair in pairs if not pair.has(best)]
    blocks = []
    if with_best:
        caption = say(f"{best} and every other method", f"{best} 与其余方法")
        blocks.append(_table(evidence, with_best, caption))
    blocks.append(
        Paragraph(
            say(
                "Every difference is between the same rows under both methods, rows with the same input "
                "taken together. p (Holm) is corrected for the number of pairs and decides; the "
                "interval and p are those of the pair alone.",
                "每个差值都在相同的数据行上配对计算，输入相同的行视为一组。判定以按比较对数校正的 p（Holm）"
                "为准；区间和 p 只针对这一对方法。",
            )
        )
    )
    if others:
        title = say(f"The other {len(others)} pairs", f"其余 {len(others)} 对")
        blocks.append(Group(title, (_table(evidence, others, title),), detail=True))
    return Section("pairs", say("All pairs", "两两比较"), lead, tuple(blocks))


def _table(evidence: Evidence, pairs: Sequence[Pair], caption: str) -> Table:
    places = max(3, evidence.places)
    name = metric_name(evidence.metric)
    rows = tuple(
        Row(
            (
                pair.one,
                pair.other,
                signed(pair.difference, places),
                interval(pair.low, pair.high, places, sign=True),
                p_value(pair.p),
                p_value(pair.p_holm),
                _result(evidence, pair),
            ),
            "good" if pair.decided else "open",
        )
        for pair in pairs
    )
    return Table(
        caption,
        (
            Column(say("better mean", "均值较好")),
            Column(say("other", "另一方")),
            Column(
                say(f"difference in {name}", f"{metric_in_chinese(evidence.metric).lstrip()}之差"),
                numeric=True,
            ),
            Column(say("95 % interval", "95 % 区间"), numeric=True),
            Column("p", numeric=True),
            Column(say("p (Holm)", "p（Holm 校正）"), numeric=True),
            Column(say("result", "结果")),
        ),
        rows,
    )


def _result(evidence: Evidence, pair: Pair) -> str:
    if not pair.decided:
        return say("not decided", "未决")
    if evidence.summary.direction == "neutral":
        return say("differ", "有差异")
    return say(f"{pair.one} is better", f"{pair.one} 更好")
