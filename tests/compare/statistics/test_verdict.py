"""The verdict: best, tied set, pairs; the summary of a metric of a comparison; simulated comparisons."""

import math
from dataclasses import replace

import numpy as np
import pytest

from onebase.compare.result import Arm, Comparison, HeldOutRow, Outcome
from onebase.compare.statistics.verdict import MetricSummary, summarise, verdict
from onebase.errors import UsageError
from onebase.language import set_language

RIGHT = {
    "good": [1.0] * 38 + [0.0] * 2,
    "close": [1.0] * 37 + [0.0] * 3,
    "bad": [1.0] * 10 + [0.0] * 30,
}


def test_best_tied_and_decided() -> None:
    found = verdict(RIGHT, range(40), direction="higher", bounds=(0, 1))
    assert found.best == "good"
    assert found.tied == ("good", "close")
    assert found.winner is None
    assert found.pair("bad", "good").difference == -0.7
    assert found.pair("bad", "good").decided
    assert not found.pair("close", "good").decided
    assert found.detectable is not None
    assert found.detectable.rows == 40
    with pytest.raises(KeyError):
        found.pair("good", "none")


def test_for_a_loss_the_least_is_best() -> None:
    found = verdict(RIGHT, range(40), direction="lower")
    assert found.best == found.winner == "bad"
    assert found.tied == ("bad",)
    assert found.detectable is not None  # against the second best


def test_tied_methods_come_best_first() -> None:
    table = {"third": [1.0, 0.0, 0.0], "first": [1.0, 1.0, 1.0], "second": [1.0, 1.0, 0.0]}
    assert verdict(table, range(3), direction="higher", bounds=(0, 1)).tied == (
        "first",
        "second",
        "third",
    )


def test_a_neutral_metric_has_no_best() -> None:
    found = verdict(RIGHT, range(40), direction="neutral")
    assert (found.best, found.tied, found.winner, found.detectable) == (None, (), None, None)
    assert len(found.pairs) == 3


def test_one_method_is_alone() -> None:
    found = verdict({"a": [1.0, 0.0]}, range(2), direction="higher", bounds=(0, 1))
    assert (found.best, found.tied, found.pairs, found.detectable) == ("a", ("a",), (), None)


def test_overlap_decides_nothing() -> None:
    # Rows that differ widely, methods that differ by .1 on each: the intervals overlap almost wholly.
    rows = np.random.default_rng(0).normal(0, 5, 40)
    noise = np.random.default_rng(1).normal(0, 0.05, 40)
    table = {"a": rows.tolist(), "b": (rows + 0.1 + noise).tolist()}
    assert verdict(table, range(40), direction="higher").winner == "b"


@pytest.mark.parametrize("clustered", [False, True])
def test_equal_methods_have_no_winner(clustered: bool) -> None:
    generator = np.random.default_rng(11)
    codes = [row // 2 for row in range(24)] if clustered else list(range(12))
    winners = differing = 0
    for _ in range(60):
        shared = generator.standard_normal((1, max(codes) + 1))[:, codes]
        losses = 0.8 * shared + 0.6 * generator.standard_normal((5, len(codes)))
        found = verdict(dict(zip("abcde", losses.tolist(), strict=True)), codes, direction="lower")
        winners += found.winner is not None
        differing += any(pair.decided for pair in found.pairs)
    assert winners <= 1
    assert differing <= 7  # 5 % of 60 are 3


def comparison(values: dict[str, list[list[float]]], clusters: list[int]) -> Comparison:
    """One arm for each list of values (accuracy of its rows), with the seeds 1, 2, …"""
    arms = []
    for method, by_seed in values.items():
        for at, rows in enumerate(by_seed):
            outcomes = tuple(
                Outcome(loss=1 + right, labels=1 + row % 2, answer="", scores={"accuracy": right})
                for row, right in enumerate(rows)
            )
            seed = None if method == "base" else at + 1
            arms.append(Arm(method, seed, {}, outcomes, {}, identity=f"{method}{at}", run="r"))
    return Comparison(
        run="r",
        task="t",
        base="b",
        data="d.jsonl",
        kind="classification",
        metric="accuracy",
        metrics=("accuracy",),
        settings="defaults",
        training_rows=1,
        validation_rows=1,
        held_out=tuple(
            HeldOutRow("d.jsonl", at + 1, "", "", cluster) for at, cluster in enumerate(clusters)
        ),
        arms=tuple(arms),
        near_duplicates=(),
        rows_sha256="",
        config={},
        seconds=0.0,
        cpu_seconds=0.0,
    )


ROWS = {
    "base": [[0.0] * 12],
    "lora": [[1.0] * 12, [1.0] * 6 + [0.0] * 6],
    "ia3": [[1.0] * 9 + [0.0] * 3, [1.0] * 8 + [0.0] * 4],
}


def test_summary_averages_the_seeds_row_by_row() -> None:
    summary = summarise(comparison(ROWS, list(range(12))), "accuracy")
    assert (summary.direction, summary.rows, summary.clusters) == ("higher", 12, 12)
    assert list(summary.intervals) == ["base", "lora", "ia3"]
    assert summary.intervals["lora"].mean == 0.75
    assert summary.intervals["base"].low == 0
    assert list(summary.seeds) == ["lora", "ia3"]
    assert summary.seeds["lora"].means == {1: 1.0, 2: 0.5}
    assert summary.verdict.pair("lora", "ia3").difference == pytest.approx(0.75 - 8.5 / 12)
    assert summary.verdict.best == "lora"
    assert summary.verdict.pair("lora", "base").decided


def test_loss_is_better_when_lower_and_counts_labels() -> None:
    summary = summarise(comparison(ROWS, list(range(12))), "loss")
    assert summary.direction == "lower"
    assert summary.verdict.best == "base"
    assert summary.intervals["lora"].mean == pytest.approx(1.75)


def test_a_method_without_outcomes_is_missing() -> None:
    whole = comparison(ROWS, list(range(12)))
    arms = [
        replace(arm, outcomes=(), diverged=True) if arm.method == "ia3" else arm
        for arm in whole.arms
    ]
    summary = summarise(replace(whole, arms=tuple(arms)), "accuracy")
    assert list(summary.intervals) == ["base", "lora"]
    assert [(pair.one, pair.other) for pair in summary.verdict.pairs] == [("base", "lora")]


def test_a_metric_that_was_not_measured_by_row() -> None:
    with pytest.raises(UsageError, match="macro_f1"):
        summarise(comparison(ROWS, list(range(12))), "macro_f1")


def test_notes_name_the_effect_and_seeds_that_differ_by_more() -> None:
    summary = summarise(comparison(ROWS, list(range(12))), "accuracy")
    effect, seeds = summary.notes()
    assert effect == summary.verdict.detectable.sentence()  # type: ignore[union-attr]
    assert seeds == (
        "The seeds of lora are 0.5 apart, more than lora and ia3 are (0.042): other seeds may change "
        "their order."
    )
    set_language("zh")
    assert summary.notes()[1] == (
        "lora 各种子之间相差 0.5，大于 lora 与 ia3 之间的差异（0.042）：换用其他种子，两者的先后可能改变。"
    )


def test_one_seed_is_noted() -> None:
    one = {method: seeds[:1] for method, seeds in ROWS.items()}
    summary = summarise(comparison(one, list(range(12))), "accuracy")
    assert summary.notes()[-1] == "One seed per method: how far seeds differ is not known."


def test_few_inputs_are_said() -> None:
    summary = summarise(comparison(ROWS, [row // 4 for row in range(12)]), "accuracy")
    assert isinstance(summary, MetricSummary)
    assert summary.verdict.tied == ("lora", "ia3", "base")
    assert summary.verdict.detectable is not None
    assert math.isinf(summary.verdict.detectable.effect)
    assert "(3 inputs) are too few" in summary.notes()[0]


def test_a_pair_that_is_significant_only_without_correction_is_tied() -> None:
    table = {"a": [1.0] * 12, "b": [1.0] * 6 + [0.0] * 6, "c": [1.0] * 12}
    found = verdict(table, range(12), direction="higher", bounds=(0, 1))
    pair = found.pair("a", "b")
    assert pair.p == 2 / 64
    assert pair.low > 0  # the interval of a pair is not corrected
    assert found.tied == ("a", "c", "b")
