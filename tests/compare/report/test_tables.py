"""Tables for programs."""

import csv
import io
import json
import math
from dataclasses import replace

from onebase.compare.report.tables import arms_csv, outcomes_jsonl, report_json, summary_csv
from onebase.compare.statistics.detectable import DetectableEffect
from onebase.compare.statistics.intervals import Interval


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_json_has_what_was_agreed(evidence) -> None:
    value = json.loads(json.dumps(report_json(evidence, "runs/x/report.html"), allow_nan=False))
    agreed = {"rows", "summary", "tied", "minimum_detectable_effect", "report"}
    assert agreed <= value.keys()
    row = next(row for row in value["rows"] if row["method"] == "lora" and row["seed"] == 1)
    assert row["trainable"] == 921_600
    assert row["peak_memory_bytes"] == 1_450_000_000
    assert row["seconds"] == 205
    assert row["adapter_bytes"] == 3_700_000
    assert row["trainable_percent"] == 100 * 921_600 / 134_515_008
    assert row["metrics"]["accuracy"] > 0.5
    assert {row["method"] for row in value["rows"]} >= {"base", "base+examples"}
    first = value["summary"][0]
    assert first.keys() >= {"method", "metric", "mean", "low", "high", "tied"}
    assert [row["method"] for row in value["summary"] if row["tied"]] == value["tied"]
    assert value["minimum_detectable_effect"] == evidence.summary.verdict.detectable.effect > 0
    assert value["report"] == "runs/x/report.html"


def test_a_number_that_is_not_finite_is_null(evidence) -> None:
    intervals = {"lora": Interval(0.5, -math.inf, math.inf)}
    effect = DetectableEffect(math.inf, 4, 4, 24)
    verdict = replace(evidence.summary.verdict, detectable=effect, pairs=())
    summary = replace(evidence.summary, intervals=intervals, verdict=verdict)
    value = report_json(replace(evidence, summary=summary), "r")
    assert value["summary"][0]["low"] is value["summary"][0]["high"] is None
    assert value["minimum_detectable_effect"] is None


def test_a_metric_without_better_and_worse_has_no_effect(evidence) -> None:
    verdict = replace(evidence.summary.verdict, detectable=None, tied=(), best=None)
    summary = replace(evidence.summary, verdict=verdict, direction="neutral")
    value = report_json(replace(evidence, summary=summary), "r")
    assert value["minimum_detectable_effect"] is value["winner"] is None
    assert value["tied"] == []


def test_the_arms_as_csv(comparison) -> None:
    rows = rows_of(arms_csv(comparison))
    assert len(rows) == 23
    assert rows[0]["method"] == "base"
    assert rows[0]["seed"] == rows[0]["seconds"] == ""
    assert rows[2]["forgetting.en.before"] == "2.9"
    assert float(rows[2]["accuracy"]) == comparison.arms[2].metrics["accuracy"]
    assert (rows[2]["reused"], rows[3]["reused"]) == ("True", "False")


def test_the_summary_as_csv(evidence) -> None:
    rows = rows_of(summary_csv(evidence))
    assert [row["method"] for row in rows] == evidence.ranked
    lora = next(row for row in rows if row["method"] == "lora")
    assert float(lora["low"]) < float(lora["mean"]) < float(lora["high"])
    assert lora["seeds"] == "3"
    assert float(lora["forgetting.zh"]) == evidence.methods["lora"].forgetting["zh"]


def test_a_line_for_each_arm_and_row(comparison) -> None:
    text = outcomes_jsonl(comparison)
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    assert len(lines) == 23 * 60
    first = lines[0]
    assert first["file"] == "data/snips.jsonl"
    assert first["line"] == 1
    assert first["input"] == comparison.held_out[0].input
    assert first["scores"] == comparison.arms[0].outcomes[0].scores
    assert first["answer"] == comparison.arms[0].outcomes[0].answer


def test_a_diverged_arm_has_no_outcomes(comparison) -> None:
    diverged = replace(comparison.arms[-1], outcomes=(), diverged=True)
    text = outcomes_jsonl(replace(comparison, arms=(*comparison.arms[:-1], diverged)))
    assert text.count("\n") == 22 * 60
