"""The statistics of a comparison as a report asks for them."""

from dataclasses import replace

from onebase.compare.evidence import Evidence, front
from onebase.compare.statistics.intervals import Interval
from onebase.compare.statistics.paired import Pair


def judged(evidence: Evidence, difference: float, p_holm: float, direction: str = "higher"):
    """The evidence with one pair, lora and ia3."""
    pair = Pair("lora", "ia3", difference, -1, 1, p_holm, p_holm)
    verdict = replace(evidence.summary.verdict, pairs=(pair,))
    summary = replace(evidence.summary, verdict=verdict, direction=direction)
    return replace(evidence, summary=summary)


def test_a_decided_difference_says_which_is_better(evidence) -> None:
    found = judged(evidence, 0.1, 0.01)
    assert found.beats("lora", "ia3") is True
    assert found.beats("ia3", "lora") is False


def test_a_lower_loss_is_better(evidence) -> None:
    found = judged(evidence, 0.1, 0.01, "lower")
    assert found.beats("lora", "ia3") is False
    assert found.beats("ia3", "lora") is True


def test_an_undecided_difference_says_nothing(evidence) -> None:
    assert judged(evidence, 0.1, 0.06).beats("lora", "ia3") is None
    assert judged(evidence, 0.1, 0.01, "neutral").beats("lora", "ia3") is None


def test_a_method_that_was_not_measured_is_not_judged(evidence) -> None:
    assert evidence.beats("lora", "dora") is None


def test_the_best_mean_comes_first(evidence) -> None:
    means = {"base": 0.2, "lora": 0.5, "ia3": 0.9}
    intervals = {name: Interval(mean, 0, 1) for name, mean in means.items()}
    found = replace(evidence, summary=replace(evidence.summary, intervals=intervals))
    assert found.ranked == ["ia3", "lora", "base"]
    assert found.trained == ["ia3", "lora"]
    assert found.references == ["base"]
    assert "full" in found.diverged
    lower = replace(evidence, summary=replace(found.summary, direction="lower"))
    assert lower.ranked == ["base", "lora", "ia3"]


def test_the_pareto_front_has_no_point_that_another_beats_in_both() -> None:
    points = {"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9), "d": (3, 0.8), "e": (4, 0.9)}
    assert front(points, lower_is_better=False) == ["a", "c"]
    assert front(points, lower_is_better=True) == ["a", "b"]
    assert front({}, lower_is_better=True) == []
