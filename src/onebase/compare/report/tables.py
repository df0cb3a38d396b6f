"""A comparison as tables for programs: CSV of arms and methods, JSON, one line for each row's outcome."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onebase.compare.evidence import Evidence
from onebase.compare.result import Arm, Comparison


def report_json(evidence: Evidence, report: str) -> dict[str, Any]:
    """What `onebase compare --json` prints; `report` is the path of the report. A number that is not
    finite is null.
    """
    summary = evidence.summary
    detectable = summary.verdict.detectable
    rows_for_half = detectable.rows_for_half if detectable else None
    value = {
        "run": evidence.comparison.run,
        "metric": evidence.metric,
        "rows": [_row(arm) for arm in evidence.comparison.arms],
        "summary": _summary(evidence),
        "pairs": [
            {
                "one": pair.one,
                "other": pair.other,
                "difference": pair.difference,
                "low": pair.low,
                "high": pair.high,
                "p": pair.p,
                "p_holm": pair.p_holm,
                "decided": pair.decided,
            }
            for pair in summary.verdict.pairs
        ],
        "winner": summary.verdict.winner,
        "tied": list(summary.verdict.tied),
        "minimum_detectable_effect": detectable.effect if detectable else None,
        "rows_for_half": rows_for_half,
        "near_duplicates": len(evidence.comparison.near_duplicates),
        "seconds": evidence.comparison.seconds,
        "cpu_seconds": evidence.comparison.cpu_seconds,
        "report": report,
    }
    finite: dict[str, Any] = _finite(value)
    return finite


def arms_csv(comparison: Comparison) -> str:
    """Every method and seed: metrics, parameters and costs. An empty cell was not measured."""
    rows = [_flat(_row(arm)) for arm in comparison.arms]
    return _csv(rows)


def summary_csv(evidence: Evidence) -> str:
    """Every method: the metric that decides, its interval, the spread of the seeds, and the costs."""
    return _csv([_flat(row) for row in _summary(evidence)])


def outcomes_jsonl(comparison: Comparison) -> str:
    """One line for each arm and held-out row: place, input, reference, answer, loss and scores."""
    lines = [
        {
            "method": arm.method,
            "seed": arm.seed,
            "file": row.file,
            "line": row.line,
            "cluster": row.cluster,
            "input": row.input,
            "reference": row.reference,
            "answer": outcome.answer,
            "loss": outcome.loss,
            "labels": outcome.labels,
            "scores": dict(outcome.scores),
        }
        for arm in comparison.arms
        if arm.outcomes
        for row, outcome in zip(comparison.held_out, arm.outcomes, strict=True)
    ]
    return "".join(json.dumps(_finite(line), ensure_ascii=False) + "\n" for line in lines)


def _row(arm: Arm) -> dict[str, Any]:
    cost = arm.cost
    return {
        "method": arm.method,
        "seed": arm.seed,
        "metrics": dict(arm.metrics),
        "trainable": arm.trainable,
        "trainable_percent": arm.trainable_percent,
        "peak_memory_bytes": cost.peak_memory_bytes if cost else None,
        "seconds": cost.seconds if cost else None,
        "cpu_seconds": cost.cpu_seconds if cost else None,
        "adapter_bytes": arm.adapter_bytes,
        "load_seconds": arm.load_seconds,
        "tokens_per_second": arm.tokens_per_second,
        "forgetting": {
            language: {"before": item.before, "after": item.after}
            for language, item in arm.forgetting.items()
        },
        "diverged": arm.diverged,
        "reused": arm.reused,
        "run": arm.run,
    }


def _summary(evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for name in evidence.ranked:
        method = evidence.methods[name]
        found = evidence.summary.intervals[name]
        spread = evidence.summary.seeds.get(name)
        rows.append(
            {
                "method": name,
                "metric": evidence.metric,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "tied": name in evidence.summary.verdict.tied,
                "seeds": len(method.arms) - method.diverged if method.trained else 0,
                "seed_deviation": spread.deviation if spread else None,
                "trainable": method.trainable,
                "trainable_percent": method.trainable_percent,
                "peak_memory_bytes": method.peak_memory_bytes,
                "seconds": method.seconds,
                "adapter_bytes": method.adapter_bytes,
                "load_seconds": method.load_seconds,
                "tokens_per_second": method.tokens_per_second,
                "forgetting": dict(method.forgetting),
            }
        )
    return rows


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without nesting: `forgetting.en.after`. Metrics stand under their own names."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            prefix = "" if key == "metrics" else f"{key}."
            flat |= {f"{prefix}{name}": item for name, item in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(dict(row)) for row in rows)
    return stream.getvalue()


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
