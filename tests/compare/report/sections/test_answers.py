"""Answers side by side, on outcomes written by hand."""

from dataclasses import replace

from onebase.compare.measured_method import measured_methods
from onebase.compare.report.sections.answers import answers_section
from onebase.compare.result import Outcome


def answering(evidence, **answers: list[tuple[str, float]]):
    """The evidence with these answers and scores of the first seed, for the first rows."""
    arms = []
    for arm in evidence.comparison.arms:
        given = answers.get(arm.method)
        if given is not None and arm.seed in (1, None):
            outcomes = tuple(
                Outcome(1 - score, 1, text, {"accuracy": score}) for text, score in given
            )
            arms.append(replace(arm, outcomes=outcomes))
    rows = evidence.comparison.held_out[: len(arms[0].outcomes)]
    comparison = replace(evidence.comparison, arms=tuple(arms), held_out=rows)
    names = [arm.method for arm in arms]
    known = {name: evidence.summary.intervals[name] for name in names}
    summary = replace(evidence.summary, intervals=known)
    return replace(
        evidence, comparison=comparison, summary=summary, methods=measured_methods(comparison)
    )


LORA = [("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0), ("e", 1.0), ("f", 0.5)]
IA3 = [("a", 1.0), ("x", 0.0), ("c", 0.0), ("y", 0.2), ("e", 1.0), ("f", 0.5)]
BASE = [("z", 0.0)] * 6


def places(section) -> dict[str, list[str]]:
    return {group.title: [card.title for card in group.blocks] for group in section.blocks}


def line(row: int) -> str:
    return f"data/snips.jsonl:{3 * row + 1}"


def test_the_three_kinds_of_rows(evidence, monkeypatch) -> None:
    monkeypatch.setattr("onebase.compare.report.sections.answers._EACH", 2)
    section = answers_section(answering(evidence, lora=LORA, ia3=IA3, base=BASE))
    assert places(section) == {
        "Most different": [line(1), line(3)],
        "Worst": [line(2), line(5)],
        "Best": [line(0), line(4)],
    }
    assert section.lead.startswith(
        "The trained methods give different answers to 2 of 6 held-out rows (shown: seed 1;"
    )


def test_the_same_answer_stands_once_the_best_first(evidence) -> None:
    section = answers_section(answering(evidence, lora=LORA, ia3=IA3, base=BASE))
    card = section.blocks[0].blocks[0]
    facts, table = card.blocks
    held_out = evidence.comparison.held_out[1]
    assert facts.items == (("Input", held_out.input), ("Reference", held_out.reference))
    assert [(*row.cells, row.mark) for row in table.rows] == [
        ("lora", "b", "1.000", "good"),
        ("ia3", "x", "0.000", "bad"),
        ("base", "z", "0.000", "bad"),
    ]
    best = next(group for group in section.blocks if group.title == "Best").blocks[0].blocks[1]
    assert best.rows[0].cells == ("lora, ia3", "a", "1.000")


def test_rows_on_which_all_agree_are_not_different(evidence) -> None:
    section = answers_section(answering(evidence, lora=LORA, ia3=LORA))
    assert "Most different" not in places(section)


def test_a_lower_loss_is_better(evidence, monkeypatch) -> None:
    monkeypatch.setattr("onebase.compare.report.sections.answers._EACH", 1)
    found = answering(evidence, lora=LORA, ia3=IA3)
    summary = replace(found.summary, metric="loss", direction="lower")
    section = answers_section(replace(found, summary=summary))
    assert places(section) == {
        "Most different": [line(1)],
        "Worst": [line(2)],
        "Best": [line(0)],
    }
    rows = section.blocks[0].blocks[0].blocks[1].rows
    assert [(*row.cells, row.mark) for row in rows] == [
        ("lora", "b", "0.000", "good"),
        ("ia3", "x", "1.000", "bad"),
    ]


def test_a_long_text_is_cut_and_an_empty_one_is_named(evidence) -> None:
    found = answering(evidence, lora=[("m" * 700, 1.0)], ia3=[("  ", 0.0)])
    (group,) = answers_section(found).blocks
    rows = group.blocks[0].blocks[1].rows
    assert rows[0].cells[1] == "m" * 600 + " … (100 more characters)"
    assert rows[1].cells[1] == "(empty)"
