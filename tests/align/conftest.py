"""Preference files of a few kinds, and tiny bases whose answers have a few tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.runs import checkpoint
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.observer import Observer

Write = Callable[[str, list[dict[str, Any]]], Path]


class Notes(Observer):
    """Keeps what the user should know."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str, **facts: Any) -> None:
        self.notes.append(text)


def as_format_1(run: Path, *, reward_model: bool = False) -> None:
    """Make the newest checkpoint of a run one of an earlier format, which held less."""
    checkpoints = Checkpoints(run / "checkpoints", limit=1)
    whole = checkpoints.newest().state
    assert whole is not None
    for key in ("samples_bytes", "machine", "random", "random_cuda"):
        del whole[key]
    state = whole["state"]
    for key in ("judgements", "varied"):
        state.pop(key, None)
    for name in ("trainee", "policy", "value"):
        if state.get(name):
            del state[name]["moved"]
    if isinstance(state.get("best"), dict):
        state["best"].pop("step", None)
    if reward_model:
        state["best_loss"] = state.pop("best")["eval_loss"]
        del state["first"], state["known"]
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(checkpoint, "FORMAT", 1)
        checkpoints.save(whole)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, rows: list[dict[str, Any]]) -> Path:
        file = tmp_path / name
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
        return file

    return written


@pytest.fixture
def pairs(write: Write) -> Path:
    """The longer answer is the chosen one."""
    words = ["parcel", "order", "lamp", "refund", "today", "hello", "way", "shop"]
    rows = [
        {
            "prompt": f"where is the {words[i % 8]} {i % 12}",
            "chosen": f"on its way, {words[(i + 3) % 8]} {i}",
            "rejected": words[(i + 1) % 8],
        }
        for i in range(24)
    ]
    return write("pairs.jsonl", rows)


@pytest.fixture
def judged(write: Write) -> Path:
    """Answers that say where it is are good."""
    words = ["parcel", "order", "lamp", "refund", "today", "hello", "way", "shop"]
    rows = [
        {
            "prompt": f"where is the {words[i % 8]} {i % 12}",
            "completion": f"on its way {i}" if i % 2 else words[i % 7],
            "label": bool(i % 2),
        }
        for i in range(32)
    ]
    return write("judged.jsonl", rows)
