"""Comparisons with given accuracies and costs; the outcomes of the rows are drawn by a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebase.compare.result import (
    BASE,
    EXAMPLES,
    Arm,
    Comparison,
    Cost,
    HeldOutRow,
    NearDuplicate,
    Outcome,
)

LABELS = ("no", "yes")
_NOISE = 0.02  # how far methods disagree about which rows are hard, in shares of the rows


@dataclass(frozen=True)
class Costs:
    """What a method takes alone. None: not measured."""

    megabytes: float | None = None
    seconds: float | None = None
    kilobytes: float = 0
    load: float | None = None
    speed: float | None = None


# Where a scenario says nothing else.
TYPICAL = {
    "full": Costs(2400, 300, 540_000, 2.0, 100),
    "lora": Costs(1200, 120, 3400, 0.20, 80),
    "qlora": Costs(600, 200, 3400, 0.20, 50),
    "ia3": Costs(1000, 100, 120, 0.05, 95),
    "prompt-tuning": Costs(820, 40, 40, 0.02, 60),
    "p-tuning": Costs(880, 50, 60, 0.02, 60),
    "p-tuning-v2": Costs(800, 90, 900, 0.03, 70),
}


def compared(
    accuracy: Mapping[str, float],
    costs: Mapping[str, Costs] | None = None,
    *,
    rows: int = 140,
    seeds: int = 3,
    diverged: Sequence[str] = (),
    metric: str = "accuracy",
    **fields: Any,
) -> Comparison:
    """A comparison in which each method is right on this share of the rows. The last seed of those that
    `diverged` has no outcome.
    """
    run = fields.get("run", "20261128-100000-0001")
    costs = {**TYPICAL, **(costs or {})}
    arms = []
    for method, share in accuracy.items():
        bare = method in (BASE, EXAMPLES)
        for seed in [None] if bare else range(seeds):
            lost = method in diverged and seed == seeds - 1
            arms.append(
                Arm(
                    method=method,
                    seed=seed,
                    settings={} if bare else {"epochs": 5},
                    outcomes=() if lost else _outcomes(method, seed, share, rows),
                    metrics={"accuracy": share},
                    identity=f"{method}-{seed}",
                    run=run,
                    diverged=lost,
                    **({} if bare else _measured(costs[method], alone=seed == 0)),
                )
            )
    return replace(_empty(rows, metric), arms=tuple(arms), **fields)


def _measured(costs: Costs, *, alone: bool) -> dict[str, Any]:
    """The fields of an arm; memory and time of the seed that was trained alone."""
    cost = None
    if alone and costs.megabytes is not None and costs.seconds is not None:
        cost = Cost(round(costs.megabytes * 1e6), costs.seconds, 2 * costs.seconds)
    return {
        "adapter_bytes": round(costs.kilobytes * 1e3),
        "cost": cost,
        "load_seconds": costs.load if alone else None,
        "tokens_per_second": costs.speed if alone else None,
    }


def _outcomes(method: str, seed: int | None, share: float, rows: int) -> tuple[Outcome, ...]:
    """Right on `share` of the rows: the easier ones, of which methods and seeds have different views."""
    draw, view = random.Random(0), random.Random(f"{method} {seed}")
    hardness = [draw.random() for _ in range(rows)]
    order = sorted(range(rows), key=lambda row: hardness[row] + view.gauss(0, _NOISE))
    right = set(order[: round(share * rows)])
    return tuple(
        Outcome(
            loss=0.1 if row in right else 1.5 + view.random(),
            labels=1,
            answer=LABELS[row in right],
            scores={"accuracy": float(row in right), "length": 1.0},
        )
        for row in range(rows)
    )


def _empty(rows: int, metric: str) -> Comparison:
    return Comparison(
        run="20261128-100000-0001",
        task="mood",
        base="tiny",
        data="mood.jsonl",
        kind="classification",
        metric=metric,
        metrics=("accuracy", "length"),
        settings="defaults",
        training_rows=200,
        validation_rows=20,
        held_out=tuple(
            HeldOutRow("mood.jsonl", row + 1, f"text {row}", "yes", row) for row in range(rows)
        ),
        arms=(),
        near_duplicates=(),
        rows_sha256="a" * 64,
        config={
            "command": "onebase compare -c config.yaml",
            "job": {"instruction": "What is the mood?", "template": "auto"},
        },
        seconds=600.0,
        cpu_seconds=1100.0,
        machine={"device": "cpu", "threads": 2},
    )


def near_duplicate(line: int) -> NearDuplicate:
    """A held-out row that is nearly the first training row."""
    return NearDuplicate(f"mood.jsonl:{line}", "mood.jsonl:1", 0.97)
