"""Ctrl-C: the first ends the step and saves, the second ends at once."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.training.test_loop import write_rows
from tests.training.test_resume import Stopping, hashes

import onebase
from onebase.model.base import Base
from onebase.runs.interruption import Interrupted, Interruption
from onebase.runs.run import RunStore
from onebase.training import loop
from onebase.training.train import resume


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
def job(tmp_path: Path) -> onebase.Job:
    settings = {"rank": 2, "batch_size": 4, "epochs": 3}  # no save between evaluations
    return onebase.Job("a", write_rows(tmp_path, "a", 14), set=settings)


class Pressing(Stopping):
    """Presses Ctrl-C `times` times in the middle of a step."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self._at, self._times = at, times

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        super().step(task, step, record)
        if step == self._at:
            for _ in range(self._times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_ctrl_c_saves_the_step(
    at: int,
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace, observer = onebase.Workspace(tmp_path / "w"), Pressing(at)
    with pytest.raises(Interrupted, match="was interrupted") as caught:
        onebase.train([job], base=make_base(), workspace=workspace, observer=observer)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.exit_code == 130
    assert "Stopping after this step; Ctrl-C again stops at once." in capfd.readouterr().err
    assert observer.steps[-1] == at
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    assert (
        caught.value.remedy
        == f"Continue with: onebase resume {run.id} --workspace {workspace.root}"
    )
    again = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=again)
    assert again.steps == list(range(at + 1, 13))
    assert hashes(stored) == hashes(expected)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait(
    job: onebase.Job, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(Interrupted):
        onebase.train([job], base=make_base(), workspace=workspace, observer=Pressing(6, times=2))
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    again = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=again)
    assert again.steps == list(range(5, 13))  # from the evaluation before
    assert hashes(stored) == hashes(expected)


def test_an_evaluation_is_abandoned_and_made_again(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")
    real = loop.token_losses
    evaluations = iter(range(100))

    def pressed(*args: Any, **kwargs: Any) -> Any:
        if "checkpointing" not in kwargs and next(evaluations) == 2:  # the base's is the first
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "token_losses", pressed)
    observer = Stopping()
    with pytest.raises(Interrupted):
        onebase.train([job], base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == list(range(1, 9))
    (run,) = RunStore(workspace).list()
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [4]
    again = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=again)
    assert again.steps == list(range(9, 13))
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [4, 8, 12]
    assert hashes(stored) == hashes(expected)


def test_while_the_base_is_judged(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")
    real = loop.token_losses

    def pressed(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "token_losses", pressed)
    with pytest.raises(Interrupted):
        onebase.train([job], base=make_base(), workspace=workspace)
    monkeypatch.setattr(loop, "token_losses", real)
    (run,) = RunStore(workspace).list()
    assert run.metrics() == []
    stored = resume(run.id, base=make_base(), workspace=workspace)
    assert hashes(stored) == hashes(expected)
    assert stored[0].metrics["base_eval_loss"] == expected[0].metrics["base_eval_loss"]


def test_while_adapters_are_stored(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")

    def pressed(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("onebase.training.stored_result.save_adapter", pressed)
        with pytest.raises(Interrupted):
            onebase.train([job], base=make_base(), workspace=workspace)
    (run,) = RunStore(workspace).list()
    assert (run.status, run.resumable) == ("interrupted", True)
    assert onebase.AdapterStore(workspace).list() == []
    again = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=again)
    assert again.steps == []
    assert [item.name for item in stored] == ["a@1"]
    assert hashes(stored) == hashes(expected)


def test_a_program_s_own_way_with_ctrl_c_is_left_alone() -> None:
    pressed: list[int] = []

    def own(number: int, frame: object) -> None:
        pressed.append(number)

    before = signal.signal(signal.SIGINT, own)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
        assert pressed == [signal.SIGINT]
        assert not interruption.asked
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed() -> None:
    entered: list[bool] = []

    def work() -> None:
        with Interruption() as interruption:
            entered.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
