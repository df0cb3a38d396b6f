"""Comparisons of a few rows on a tiny base: jobs, options, and what is asked of a comparison."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.training.test_loop import write_rows
from torch.nn.functional import cross_entropy

from onebase.compare.options import CompareOptions
from onebase.compare.result import Arm, Comparison
from onebase.engine.rows import TokenRow
from onebase.runs.observer import Observer
from onebase.training.job import Job

SETTINGS = {"epochs": 2, "batch_size": 4, "warmup": 1}
OPTIONS = CompareOptions(
    methods=("lora", "p-tuning-v2"), seeds=2, share=0.25, answer_tokens=4, alone=False, examples=2
)
LORA = replace(OPTIONS, methods=("lora",))
ONE = replace(LORA, seeds=1)


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def noted(self, text: str, **facts: Any) -> None:
        self.texts.append(text)


class CtrlC(Observer):
    """Presses Ctrl-C at a step of the training."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, task: str, step: int, record: Any) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def spoken(folder: Path, rows: int = 24) -> Job:
    """A generation task."""
    return Job("zs", write_rows(folder, "a", rows), instruction="Say it.", set=SETTINGS)


def labelled_rows(count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "text": f"parcel {number} {'is here' if number % 2 else 'is late'}",
            "label": str(number % 2),
        }
        for number in range(count)
    ]


def arm_of(comparison: Comparison, method: str, seed: int | None = 0) -> Arm:
    (arm,) = [arm for arm in comparison.arms if (arm.method, arm.seed) == (method, seed)]
    return arm


def same_outcomes(one: Arm, other: Arm) -> bool:
    """The same answers, and the same losses but for their last digits."""
    pairs = list(zip(one.outcomes, other.outcomes, strict=True))
    losses = [abs(mine.loss - yours.loss) for mine, yours in pairs]
    return max(losses) < 1e-5 and all(mine.answer == yours.answer for mine, yours in pairs)


def plain_losses(model: Any, rows: list[TokenRow]) -> list[float]:
    """The mean loss of a label of every row, by a plain model, one row a pass."""
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        labels = [at for at, is_label in enumerate(row.loss_mask) if is_label]
        targets = torch.tensor([row.ids[at] for at in labels])
        losses.append(float(cross_entropy(logits[[at - 1 for at in labels]], targets)))
    return losses
