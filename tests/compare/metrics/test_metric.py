"""The table of metrics, and which value of one is better."""

from dataclasses import replace
from typing import Any

import pytest

from onebase.compare.metrics.metric import METRICS
from onebase.compare.result import LOWER_IS_BETTER, NEUTRAL, Comparison


def test_the_table_is_complete() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        for english, chinese in (metric.title, metric.unit, metric.description):
            assert english
            assert chinese
            assert "  " not in english
        assert metric.description[0].endswith(".")
        assert metric.description[1].endswith("。")


def test_which_way_is_better() -> None:
    assert {"loss", "perplexity"} == LOWER_IS_BETTER
    assert {"length"} == NEUTRAL


def test_a_metric_of_the_user_s_may_be_better_when_lower() -> None:
    given: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
    comparison = Comparison(**given | {"lower_is_better": ("errors",)})
    assert comparison.better("errors", 1.0, 2.0)
    assert comparison.better("loss", 1.0, 2.0)
    assert comparison.better("accuracy", 2.0, 1.0)
    assert not comparison.better("accuracy", 1.0, 1.0)
    assert not replace(comparison, lower_is_better=()).better("errors", 1.0, 2.0)


@pytest.mark.parametrize("name", ["rouge_l", "bleu_4", "chrf", "corpus_bleu_4", "corpus_chrf"])
def test_what_the_field_reports_out_of_100(name: str) -> None:
    assert METRICS[name].unit[0] == "0 to 100"
