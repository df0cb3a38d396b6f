"""Tokens to reach each quality, on curves written by hand."""

from dataclasses import replace

from onebase.compare.measured_method import measured_methods
from onebase.compare.report.sections.tokens import loss_levels, tokens_section
from onebase.compare.result import CurvePoint


def learning(evidence, **curves: list[list[float]]):
    """The evidence with these validation losses, a list for each seed, after 0, 10, 20, … tokens."""
    arms = []
    for arm in evidence.comparison.arms:
        losses = curves.get(arm.method)
        if losses is not None and arm.seed is not None:
            points = enumerate(losses[arm.seed - 1])
            curve = tuple(CurvePoint(10 * step, loss) for step, loss in points)
            arms.append(replace(arm, curve=curve))
    comparison = replace(evidence.comparison, arms=tuple(arms))
    return replace(evidence, comparison=comparison, methods=measured_methods(comparison))


def test_levels_lie_on_the_way_to_the_lowest_loss(evidence) -> None:
    found = learning(evidence, lora=[[3.0, 1.0]] * 3, ia3=[[2.5, 2.0]] * 3)
    assert loss_levels(list(found.methods.values())) == [2.0, 1.5, 1.2, 1.04]


def test_the_lowest_loss_is_below_the_last_level_as_it_is_printed(evidence) -> None:
    found = learning(evidence, lora=[[3.0, 1.0003]] * 3)
    assert loss_levels(list(found.methods.values()))[-1] == 1.041  # 1.040294 rounded up


def test_no_levels_where_nothing_was_measured_or_learned(evidence) -> None:
    for losses in ([[], [], []], [[1.0]] * 3):
        found = learning(evidence, lora=losses)
        assert loss_levels(list(found.methods.values())) == []
        assert tokens_section(found).lead == "No validation losses were measured."


def test_the_median_of_the_seeds(evidence) -> None:
    found = learning(
        evidence,
        lora=[[3.0, 1.5, 1.0], [3.0, 2.0, 1.0], [3.0, 1.9, 1.2]],
        ia3=[[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]],
    )
    section = tokens_section(found)
    table = section.blocks[0]
    assert [column.title for column in table.columns[1:]] == [
        *("≤\u00a02.000", "≤\u00a01.500", "≤\u00a01.200", "≤\u00a01.040"),
    ]
    assert [row.cells for row in table.rows] == [
        ("ia3", "10", "10", "10", "10"),
        ("lora", "10", "20", "20", "20 (2/3)"),
    ]
    assert section.lead == "ia3 needs the fewest tokens to a validation loss of 1.040: 10."


def test_a_level_that_most_seeds_miss(evidence) -> None:
    found = learning(evidence, lora=[[3.0, 1.0], [3.0, 2.0], [3.0, 2.0]], ia3=[[3.0, 3.0]] * 3)
    section = tokens_section(found)
    assert [row.cells for row in section.blocks[0].rows] == [
        ("lora", "10", "– (1/3)", "– (1/3)", "– (1/3)"),
        ("ia3", "–", "–", "–", "–"),
    ]
    assert section.lead.startswith("No method reaches a validation loss of 1.040")
