"""Held-out rows that are nearly training rows."""

from onebase.compare.evidence import Evidence
from onebase.compare.report.document import Column, Row, Section, Table
from onebase.language import say
from onebase.quantity import percent

_LISTED = 50


def near_duplicates_section(evidence: Evidence) -> Section:
    """The near-duplicates, the most similar first."""
    comparison = evidence.comparison
    title = say("Near-duplicates", "近似重复")
    found = sorted(comparison.near_duplicates, key=lambda pair: -pair.similarity)
    rows = len(comparison.held_out)
    if not found:
        lead = say(
            f"None of the {rows} held-out rows is nearly the same as a training row.",
            f"{rows} 行留出数据中，没有与训练数据近似重复的行。",
        )
        return Section("near-duplicates", title, lead)
    count = len({pair.held_out for pair in found})
    lead = say(
        f"{count} of {rows} held-out rows ({percent(100 * count / rows)}) "
        f"{'is' if count == 1 else 'are'} nearly the same as a training row: there, memorising looks "
        "like quality.",
        f"{rows} 行留出数据中有 {count} 行（{percent(100 * count / rows)}）与训练数据近似重复：在这些行上，"
        "死记硬背看起来就像质量好。",
    )
    left = len(found) - _LISTED
    table = Table(
        say("Near-duplicates, the most similar first", "近似重复（按相似度从高到低）"),
        (
            Column(say("held-out row", "留出数据")),
            Column(say("training row", "训练数据")),
            Column(say("similarity", "相似度"), numeric=True),
        ),
        tuple(
            Row((pair.held_out, pair.training, f"{pair.similarity:.2f}"))
            for pair in found[:_LISTED]
        ),
        say(f"{left} more are in comparison.json.", f"另有 {left} 条，见 comparison.json。")
        if left > 0
        else "",
    )
    return Section("near-duplicates", title, lead, (table,))
