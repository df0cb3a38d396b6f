"""The verdict in words."""

from dataclasses import replace

from onebase.compare.report.sections.verdict import verdict_section
from onebase.compare.statistics.intervals import Interval
from onebase.language import set_language


def ruled(evidence, best, tied):
    verdict = replace(evidence.summary.verdict, best=best, tied=tied)
    known = evidence.summary.intervals | {"lora": Interval(0.9123, 0.874, 0.95)}
    return replace(evidence, summary=replace(evidence.summary, verdict=verdict, intervals=known))


def words(evidence) -> list[str]:
    return [block.text for block in verdict_section(evidence).blocks]


def test_a_winner(evidence) -> None:
    assert verdict_section(ruled(evidence, "lora", ("lora",))).lead == (
        "lora is the best: its mean accuracy is 0.912 [0.874, 0.950] (higher is better), and every "
        "other method is worse by the paired test."
    )


def test_a_tied_set(evidence) -> None:
    found = ruled(evidence, "lora", ("lora", "full", "ia3"))
    assert verdict_section(found).lead == (
        "lora has the best mean accuracy, 0.912 [0.874, 0.950] (higher is better), but the held-out "
        "rows cannot tell it from full and ia3."
    )
    set_language("zh")
    assert verdict_section(found).lead == (
        "lora 的平均准确率最好，为 0.912 [0.874, 0.950]（越高越好），但留出数据不足以把它与 full 和 ia3 "
        "区分开。"
    )


def test_no_best_of_a_neutral_metric(evidence) -> None:
    summary = replace(ruled(evidence, None, ()).summary, metric="length", direction="neutral")
    lead = verdict_section(replace(evidence, summary=summary)).lead
    assert (
        lead
        == "There is no best method: length is measured, but a higher value is neither better nor worse."
    )


def test_the_cheapest_of_the_tied_set_is_named(evidence) -> None:
    (text,) = [text for text in words(ruled(evidence, "lora", ("lora", "full"))) if "least" in text]
    assert text == (
        "Of the trained methods that are tied, lora takes the least memory (1.45 GB), training time "
        "(205 s) and disk space (3.70 MB)."
    )


def test_several_cheapest_methods(evidence) -> None:
    found = ruled(evidence, "lora", ("lora", "qlora", "base"))
    assert (
        "Of the trained methods that are tied, qlora takes the least memory (1.32 GB) and lora takes "
        "the least training time (205 s) and disk space (3.70 MB)." in words(found)
    )


def test_latin_names_stand_between_spaces_in_chinese(evidence) -> None:
    set_language("zh")
    summary = replace(ruled(evidence, "lora", ("lora",)).summary, metric="rouge_l")
    lead = verdict_section(replace(evidence, summary=summary)).lead
    assert lead.startswith("lora 最好：平均 ROUGE-L 为 0.912")


def test_a_winner_has_no_tie_to_break(evidence) -> None:
    assert "least" not in " ".join(words(ruled(evidence, "lora", ("lora",))))


def test_a_base_that_is_tied_is_said(evidence) -> None:
    assert (
        "The base with examples is in the tied set: these rows do not show that training is worth "
        "its cost." in words(ruled(evidence, "lora", ("lora", "base+examples")))
    )


def test_the_notes_of_the_statistics_are_there(evidence) -> None:
    assert set(evidence.summary.notes()) <= set(words(evidence))


def test_where_the_settings_come_from(evidence) -> None:
    def settings(source):
        return words(replace(evidence, comparison=replace(evidence.comparison, settings=source)))

    assert "default settings" in settings("defaults")[-1]
    assert "The settings are the user's" in settings("given")[-1]
    assert "same budget" in settings("tuned")[-1]
