"""Confusion matrices."""

from dataclasses import replace

from onebase.compare.report.sections.confusion import confusion_section


def test_every_answer_of_every_seed_is_counted(evidence) -> None:
    section = confusion_section(evidence)
    lora = next(group for group in section.blocks if group.title == "lora").blocks[0]
    counts = [[int(cell.replace("·", "0")) for cell in row.cells[1:]] for row in lora.rows]
    assert sum(map(sum, counts)) == 3 * 60
    arms = evidence.comparison.arms_of("lora")
    right = sum(outcome.scores["accuracy"] for arm in arms for outcome in arm.outcomes)
    assert sum(counts[at][at] for at in range(5)) == right


def answering(evidence, answer_of):
    """The evidence with one method whose answers are made from the references."""
    arm = evidence.comparison.arms_of("lora")[0]
    outcomes = tuple(
        replace(outcome, answer=answer_of(row.reference))
        for row, outcome in zip(evidence.comparison.held_out, arm.outcomes, strict=True)
    )
    comparison = replace(evidence.comparison, arms=(replace(arm, outcomes=outcomes),))
    known = {"lora": evidence.summary.intervals["lora"]}
    summary = replace(evidence.summary, intervals=known)
    return replace(evidence, comparison=comparison, summary=summary)


def test_the_matrix(evidence) -> None:
    swap = {"PlayMusic": "GetWeather", "GetWeather": "none of them"}
    section = confusion_section(answering(evidence, lambda label: swap.get(label, label)))
    table = section.blocks[0].blocks[0]
    assert [column.title for column in table.columns] == [
        "reference",
        *("PlayMusic", "GetWeather", "BookRestaurant", "RateBook", "AddToPlaylist"),
        "none of them",
    ]
    assert len(table.rows) == 5  # nothing is a reference for "none of them"
    assert table.rows[0].cells == ("PlayMusic", "·", "12", "·", "·", "·", "·")
    assert table.rows[1].cells == ("GetWeather", "·", "·", "·", "·", "·", "12")
    assert table.rows[2].cells == ("BookRestaurant", "·", "·", "12", "·", "·", "·")
    assert (
        section.lead == "lora most often takes “GetWeather” for “none of them”: 12 answers of 60."
    )


def test_no_confusion(evidence) -> None:
    section = confusion_section(answering(evidence, lambda label: label))
    assert section.lead == "lora confuses no label."


def test_many_labels_are_listed_by_their_confusions(evidence, monkeypatch) -> None:
    monkeypatch.setattr("onebase.compare.report.sections.confusion._WIDEST", 3)
    swap = {"PlayMusic": "GetWeather"}
    section = confusion_section(answering(evidence, lambda label: swap.get(label, label)))
    table = section.blocks[0].blocks[0]
    assert [row.cells for row in table.rows] == [("PlayMusic", "GetWeather", "12")]


def test_a_generation_has_none(evidence) -> None:
    generation = replace(evidence.comparison, kind="generation")
    assert confusion_section(replace(evidence, comparison=generation)) is None
