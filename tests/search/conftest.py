"""Races on tiny bases: their workspace and their job."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.training.test_loop import write_rows

import onebase
from onebase.search import successive_halving as halving_module
from onebase.search.ties import RowLosses
from onebase.training import loop as loop_module


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture(autouse=True)
def _python_s_own_ctrl_c() -> Iterator[None]:
    """In the background a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def workspace(tmp_path: Path) -> onebase.Workspace:
    return onebase.Workspace(tmp_path / "w")


@pytest.fixture
def job(tmp_path: Path) -> onebase.Job:
    settings = {"batch_size": 4, "epochs": 4, "held_out": 0.2}
    return onebase.Job("zs", write_rows(tmp_path, "a", 40), instruction="Say it.", set=settings)


@pytest.fixture
def losses_told(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Held-out losses by a configuration's number, in the order of its evaluations; the last one
    remains, and others have 1. The race keeps to its first plan.
    """
    losses: dict[int, list[float]] = {}
    real = loop_module.mean_losses

    def next_loss(name: str) -> float:
        number = name.rpartition("-")[2]
        values = losses.get(int(number)) if number.isdigit() else None
        return (values.pop(0) if len(values) > 1 else values[0]) if values else 1.0

    def mean_losses(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {name: next_loss(name) for name in real(*args, **kwargs)}

    monkeypatch.setattr(loop_module, "mean_losses", mean_losses)
    monkeypatch.setattr(halving_module, "widened", lambda plan, *_, **__: plan)
    monkeypatch.setattr(halving_module, "_LEAST_FINALISTS", 1)
    monkeypatch.setattr(RowLosses, "tied", lambda *_: False)
    return losses
