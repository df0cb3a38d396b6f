"""The tables of the methods."""

from dataclasses import replace

from onebase.compare.report.sections.methods import methods_section


def columns(table, name: str) -> dict[str, str]:
    at = [column.title for column in table.columns].index(name)
    return {row.cells[0]: row.cells[at] for row in table.rows}


def test_methods_come_best_first_and_the_base_last(evidence) -> None:
    for table in methods_section(evidence).blocks:
        names = [row.cells[0] for row in table.rows]
        assert names == [*evidence.trained, "base+examples", "base"]


def test_how_many_beat_the_base(evidence) -> None:
    pairs = tuple(
        replace(
            pair, difference=0.1 if pair.one == "base+examples" else pair.difference, p_holm=0.01
        )
        for pair in evidence.summary.verdict.pairs
    )
    verdict = replace(evidence.summary.verdict, pairs=pairs)
    found = replace(evidence, summary=replace(evidence.summary, verdict=verdict))
    base, examples = (f"{evidence.mean(name):.3f}" for name in ("base", "base+examples"))
    assert methods_section(found).lead == (
        f"Of 7 trained methods, 7 beat the base with its instruction alone ({base}) and 0 beat the base "
        f"with examples in its prompt ({examples}), by the paired test."
    )


def test_the_quality_of_a_method(evidence) -> None:
    quality, _ = methods_section(evidence).blocks
    interval = evidence.summary.intervals["lora"]
    assert columns(quality, "accuracy")["lora"] == f"{interval.mean:.3f}"
    assert columns(quality, "95 % interval")["lora"] == f"[{interval.low:.3f}, {interval.high:.3f}]"
    deviation = evidence.summary.seeds["lora"].deviation
    assert columns(quality, "seeds: SD")["lora"] == f"{deviation:.3f}"
    assert columns(quality, "seeds: SD")["base"] == "–"
    assert columns(quality, "perplexity")["base"].count(".") == 1


def test_the_tied_set_is_marked_in_words_and_in_colour(evidence) -> None:
    quality, cost = methods_section(evidence).blocks
    said = columns(quality, "against the best")
    assert {name for name, text in said.items() if text == "tied"} == set(
        evidence.summary.verdict.tied
    )
    for table in (quality, cost):
        marked = {row.cells[0] for row in table.rows if row.mark == "tied"}
        assert marked == set(evidence.summary.verdict.tied)


def test_what_a_method_takes(evidence) -> None:
    _, cost = methods_section(evidence).blocks
    row = next(row for row in cost.rows if row.cells[0] == "lora")
    assert row.cells == (
        *("lora", "921,600", "0.69 %", "1.45 GB", "205 s", "369 s", "3.70 MB", "24 ms", "230"),
        *("+0.006", "+0.001"),
    )
    base = next(row for row in cost.rows if row.cells[0] == "base")
    assert base.cells == ("base", *["–"] * 7, "240", "–", "–")
    assert columns(cost, "forgetting, English")["full"] == "+0.273"
    assert "(seed 1)" in cost.note


def test_a_method_that_diverged_is_in_the_table(evidence) -> None:
    arms = tuple(
        replace(arm, outcomes=(), diverged=True) if arm.method == "ia3" else arm
        for arm in evidence.comparison.arms
    )
    known = {name: one for name, one in evidence.summary.intervals.items() if name != "ia3"}
    comparison = replace(evidence.comparison, arms=arms)
    ia3 = replace(
        evidence.methods["ia3"],
        arms=tuple(arm for arm in arms if arm.method == "ia3"),
    )
    found = replace(
        evidence,
        comparison=comparison,
        summary=replace(evidence.summary, intervals=known),
        methods=evidence.methods | {"ia3": ia3},
    )
    quality, _ = methods_section(found).blocks
    assert columns(quality, "against the best")["ia3"] == "diverged"
    assert "Diverged seeds are left out: ia3 (3)." in quality.note
