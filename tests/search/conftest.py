"""Races on tiny bases: their workspace and their job."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.training.test_loop import write_rows

import onebase


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
