"""Held-out rows that are nearly training rows."""

from dataclasses import replace

from onebase.compare.report.sections.near_duplicates import near_duplicates_section
from onebase.compare.result import NearDuplicate


def with_pairs(evidence, *pairs: NearDuplicate):
    return replace(evidence, comparison=replace(evidence.comparison, near_duplicates=pairs))


def test_none(evidence) -> None:
    section = near_duplicates_section(with_pairs(evidence))
    assert section.lead == "None of the 60 held-out rows is nearly the same as a training row."
    assert section.blocks == ()


def test_a_held_out_row_counts_once_and_the_most_similar_comes_first(evidence) -> None:
    pairs = [
        NearDuplicate("a:1", "a:7", 0.91),
        NearDuplicate("a:2", "a:8", 0.99),
        NearDuplicate("a:1", "a:9", 0.95),
    ]
    section = near_duplicates_section(with_pairs(evidence, *pairs))
    assert section.lead.startswith("2 of 60 held-out rows (3.3 %) are nearly the same")
    assert [row.cells for row in section.blocks[0].rows] == [
        ("a:2", "a:8", "0.99"),
        ("a:1", "a:9", "0.95"),
        ("a:1", "a:7", "0.91"),
    ]


def test_the_rest_of_a_long_list_is_counted(evidence) -> None:
    pairs = [NearDuplicate(f"a:{n}", "a:9", 1.0) for n in range(57)]
    table = near_duplicates_section(with_pairs(evidence, *pairs)).blocks[0]
    assert len(table.rows) == 50
    assert table.note == "7 more are in comparison.json."
