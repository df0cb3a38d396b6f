"""All pairs of methods."""

from dataclasses import replace

from onebase.compare.report.sections.pairs import pairs_section


def rows(evidence) -> list[tuple[str, ...]]:
    first, _, group = pairs_section(evidence).blocks
    return [row.cells for table in (first, *group.blocks) for row in table.rows]


def test_every_pair_is_there_once(evidence) -> None:
    found = [frozenset(cells[:2]) for cells in rows(evidence)]
    assert len(found) == len(set(found)) == 36


def test_the_better_mean_comes_first(evidence) -> None:
    assert all(evidence.mean(one) >= evidence.mean(other) for one, other, *_ in rows(evidence))
    assert not any(cells[2].startswith("−") for cells in rows(evidence))


def test_the_corrected_p_decides(evidence) -> None:
    pairs = tuple(
        replace(pair, p=0.001, p_holm=0.049 if pair.has("base") else 0.051)
        for pair in evidence.summary.verdict.pairs
    )
    verdict = replace(evidence.summary.verdict, pairs=pairs)
    found = replace(evidence, summary=replace(evidence.summary, verdict=verdict))
    assert pairs_section(found).lead == (
        "Of 36 pairs, 8 differ at the 5 % level after correction; 28 are not decided."
    )
    for cells in rows(found):
        assert cells[-1] == (f"{cells[0]} is better" if "base" in cells[:2] else "not decided")


def test_a_neutral_metric_has_no_better(evidence) -> None:
    verdict = replace(evidence.summary.verdict, best=None, tied=())
    summary = replace(evidence.summary, verdict=verdict, direction="neutral")
    (table,) = pairs_section(replace(evidence, summary=summary)).blocks
    assert len(table.rows) == 36
    assert {row.cells[-1] for row in table.rows} <= {"differ", "not decided"}
