"""When a run is saved, and what happens where it can't be."""

import errno
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tests.training.test_loop import write_rows
from tests.training.test_resume import Stopping, hashes

import onebase
from onebase.model.base import Base
from onebase.runs import checkpoint, checkpointer
from onebase.runs.run import RunStore
from onebase.runs.session import RunSession, run_session
from onebase.training.job_state import EXPLODED_STEPS, JobState
from onebase.training.train import resume


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


class Clock:
    """Time that passes when it is told to; each save takes `cost` seconds of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.cost = 0.0
        self.saves: list[float] = []
        monkeypatch.setattr(checkpointer.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(checkpointer.Checkpoints, "save", self._save)

    def _save(self, state: dict[str, Any]) -> None:
        self.saves.append(self.now - 1000)
        self.now += self.cost


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Counter:
    """What is trained, as small as can be."""

    progress: Mapping[str, tuple[int, int]] = {"a": (1, 2)}

    def state_dict(self) -> dict[str, Any]:
        return {"step": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def session(tmp_path: Path, base: Base, **settings: Any) -> Iterator[RunSession]:
    workspace = onebase.Workspace(tmp_path / "w")
    with run_session({"identity": "x"}, base, workspace, 0, **settings) as run:
        run.restore(Counter(), [])
        yield run


def pass_by(clock: Clock, run: RunSession, seconds: int, evaluated: Sequence[int] = ()) -> None:
    """A step a second; after some of them an evaluation."""
    while clock.now < 1000 + seconds:
        clock.now += 1
        run.between_steps(evaluated=clock.now - 1000 in evaluated)


def test_it_saves_at_first_at_evaluations_and_every_so_many_seconds(
    tmp_path: Path, make_base: Callable[..., Base], clock: Clock
) -> None:
    with session(tmp_path, make_base(), save_seconds=10) as run:
        pass_by(clock, run, 40, evaluated=[4, 17, 18])
    assert clock.saves == [1, 4, 14, 17, 18, 28, 38]


def test_a_slow_save_waits_its_turn(
    tmp_path: Path, make_base: Callable[..., Base], clock: Clock
) -> None:
    clock.cost = 3.0
    with session(tmp_path, make_base(), save_seconds=0) as run:
        pass_by(clock, run, 80, evaluated=[20, 40])
    assert clock.saves == [1, 34, 67]  # at most one second in eleven, evaluations or not


def test_one_checkpoint_is_kept_of_a_finished_run(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    with session(tmp_path, make_base(), save_limit=3) as run:
        for _ in range(5):
            run.save()
        names = [path.name for path in run.run.checkpoints.iterdir()]
        assert sorted(names) == ["000003", "000004", "000005"]
    assert [path.name for path in run.run.checkpoints.iterdir()] == ["000005"]


def test_of_several_jobs_the_shortest_time_and_the_highest_limit_hold(
    tmp_path: Path, make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spied(*args: Any, **settings: Any) -> Any:
        seen.update(settings)
        return run_session(*args, **settings)

    monkeypatch.setattr("onebase.training.train.run_session", spied)
    data = write_rows(tmp_path, "rows", 8)
    jobs = [
        onebase.Job("a", data, set={"rank": 1, "epochs": 1, "save_seconds": 30, "save_limit": 3}),
        onebase.Job("b", data, set={"rank": 1, "epochs": 1, "save_seconds": 10, "save_limit": 1}),
    ]
    onebase.train(jobs, base=make_base(), workspace=onebase.Workspace(tmp_path / "w"))
    assert (seen["save_seconds"], seen["save_limit"]) == (10, 3)


def test_the_end_is_saved_once(
    tmp_path: Path, make_base: Callable[..., Base], clock: Clock
) -> None:
    with session(tmp_path, make_base(), save_seconds=30) as run:
        pass_by(clock, run, 5)
        for _ in range(2):
            with run.storing(onebase.Workspace(tmp_path / "w")):
                pass
    assert clock.saves == [1, 5]


def test_what_a_checkpoint_leaves_out(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    """What is not needed to go on is not written: a whole model is not cheap."""
    base = make_base()
    data = write_rows(tmp_path, "rows", 12)
    settings = {"batch_size": 4, "epochs": 2}
    job_state = JobState(onebase.Job("a", data, "full", set=settings), base)

    def kept_parts() -> set[str]:
        state = job_state.state_dict()
        stream = io.BytesIO()
        torch.save(state, stream)
        stream.seek(0)
        again = JobState(job_state.job, base)
        again.load_state_dict(torch.load(stream, weights_only=True))
        for name, part in job_state.trainable.best.items():
            assert torch.equal(again.trainable.best[name], part)
        if not job_state.done or job_state.evaluation_due:
            for name, part in job_state.adapter.parts().items():
                assert torch.equal(again.adapter.parts()[name], part)
        return {name for name in ("adapter", "optimizer", "best") if state[name] is not None}

    assert kept_parts() == set()  # the base itself
    onebase.training.loop.step_together(job_state.base, [job_state], Stopping())
    assert kept_parts() == {"adapter", "optimizer"}  # nothing judged yet
    for _ in range(2):
        onebase.training.loop.step_together(job_state.base, [job_state], Stopping())
    assert job_state.evaluation_due
    onebase.training.loop.evaluate_together(job_state.base, [job_state], Stopping())
    assert kept_parts() == {"adapter", "optimizer"}  # the best is this state
    onebase.training.loop.step_together(job_state.base, [job_state], Stopping())
    assert kept_parts() == {"adapter", "optimizer", "best"}
    for _ in range(2):
        onebase.training.loop.step_together(job_state.base, [job_state], Stopping())
    assert job_state.done
    assert kept_parts() == {"adapter", "optimizer", "best"}  # to be judged yet
    onebase.training.loop.evaluate_together(job_state.base, [job_state], Stopping())
    assert kept_parts() == {"best"}


class FullDisk:
    """Refuses what is written to files whose name matches, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
        self.full = True
        self.refused = 0
        real = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if self.full and re.search(names, str(path)) and set("wa+") & set(mode):
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", opened)


class Filling(Stopping):
    """The disk is full from one step to another."""

    def __init__(self, disk: FullDisk, first: int, last: int) -> None:
        super().__init__()
        self._disk, self._first, self._last = disk, first, last
        disk.full = False

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        super().step(task, step, record)
        self._disk.full = self._first <= step < self._last


@pytest.fixture
def job(tmp_path: Path) -> onebase.Job:
    settings = {"rank": 2, "batch_size": 4, "epochs": 3, "save_seconds": 0}
    return onebase.Job("a", write_rows(tmp_path, "a", 14), set=settings)


def test_a_full_disk_is_reported_once_and_training_goes_on(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")
    disk = FullDisk(monkeypatch, "checkpoints|metrics")
    observer = Filling(disk, 4, 8)
    stored = onebase.train([job], base=make_base(), workspace=workspace, observer=observer)
    assert disk.refused == 11
    assert hashes(stored) == hashes(expected)
    assert len(observer.notes) == 2
    assert "metrics.jsonl of run" in observer.notes[0]
    assert re.search(
        "A checkpoint of run .* can't be saved: No space left on device. The last good one is kept",
        observer.notes[1],
    )
    (run,) = RunStore(workspace).list()
    metrics = run.metrics()
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, 13))
    assert [line["note"] for line in metrics if "note" in line] == observer.notes
    assert [line["time"] for line in metrics] == sorted(line["time"] for line in metrics)


def test_the_last_good_checkpoint_survives_a_full_disk(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full from step 4 to the end: nothing can be stored; with room again it goes on from 3."""
    expected = onebase.train([job], base=make_base(), workspace=onebase.Workspace(tmp_path / "e"))
    workspace = onebase.Workspace(tmp_path / "w")
    disk = FullDisk(monkeypatch, "/w/")
    real = Path.mkdir

    def make(path: Path, *args: Any, **kwargs: Any) -> None:
        if disk.full and "adapters" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(onebase.OnebaseError, match="can't be stored: No space left") as caught:
        onebase.train(
            [job], base=make_base(), workspace=workspace, observer=Filling(disk, 4, 1 << 30)
        )
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    assert run.resumable
    assert f"onebase resume {run.id} --workspace {workspace.root}" in caught.value.remedy
    assert str(workspace.root) in caught.value.remedy
    disk.full = False
    observer = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == list(range(4, 13))
    assert hashes(stored) == hashes(expected)
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    assert steps == list(range(1, 13))


def test_adapters_that_cannot_be_stored_leave_the_run_resumable(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    disk = FullDisk(monkeypatch, r"adapters/b/")
    jobs = [job, replace(job, task="b")]
    with pytest.raises(onebase.OnebaseError, match="can't be stored"):
        onebase.train(jobs, base=make_base(), workspace=workspace)
    (run,) = RunStore(workspace).list()
    assert run.summary["status"] == "interrupted"
    assert "No space left" in run.summary["reason"]
    assert [item.name for item in onebase.AdapterStore(workspace).list()] == ["a@1"]
    disk.full = False
    observer = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == []  # nothing is learned twice
    assert [item.name for item in stored] == ["a@1", "b@1"]


def test_any_other_refusal_of_the_disk_is_told_too(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sync_folder", refuse)
    workspace, observer = onebase.Workspace(tmp_path / "w"), Stopping()
    onebase.train([job], base=make_base(), workspace=workspace, observer=observer)
    (note,) = observer.notes
    assert "Input/output error" in note


def test_a_library_s_own_error_of_a_full_disk(
    job: onebase.Job,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("onebase.training.stored_result.save_adapter", refuse)
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(onebase.OnebaseError, match="can't be stored: I/O error: No space"):
        onebase.train([job], base=make_base(), workspace=workspace)
    (run,) = RunStore(workspace).list()
    assert run.resumable


def test_an_exploding_loss_ends_that_job_alone(
    tmp_path: Path, make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rank": 2, "batch_size": 2, "epochs": 8}
    data = write_rows(tmp_path, "rows", 14)
    calm = onebase.Job("calm", data, set=settings)
    wild = onebase.Job("wild", data, set=settings, seed=1)
    real = onebase.training.loop._gradients

    def exploding(base: Base, job_states: Sequence[JobState], *args: Any) -> dict[str, float]:
        losses = real(base, job_states, *args)
        for job_state in job_states:
            if job_state.job.task == "wild" and job_state.step >= 9:
                losses["wild"] *= 4
        return losses

    monkeypatch.setattr(onebase.training.loop, "_gradients", exploding)
    observer, workspace = Stopping(), onebase.Workspace(tmp_path / "w")
    stored = onebase.train([wild, calm], base=make_base(), workspace=workspace, observer=observer)
    assert [item.name for item in stored] == ["wild@1", "calm@1"]
    assert stored[0].metrics["diverged"]
    assert not stored[1].metrics["diverged"]
    assert stored[0].metrics["steps"] == 9 + EXPLODED_STEPS - 1
    (run,) = RunStore(workspace).list()
    judged = {
        line["eval_loss"]: line["step"]
        for line in run.metrics()
        if line.get("task") == "wild" and "best" in line
    }
    assert list(judged.values()) == [7, 14, 21, 28]  # its epochs until step 28
    assert stored[0].metrics["best_step"] == judged[min(judged)]
    assert stored[1].metrics["steps"] == 56
    best = stored[0].metrics["best_step"]
    assert observer.notes == [
        f"wild stops after step {8 + EXPLODED_STEPS}, alone: its loss has exploded; "
        f"its best state, of step {best}, is kept. Lower its learning_rate."
    ]
    assert run.status == "finished"
    (line,) = (line for line in run.metrics() if "note" in line)
    assert (line["task"], line["trouble"], line["best_step"]) == ("wild", "exploded", best)


@pytest.mark.parametrize(
    ("first", "later", "ends"),
    [
        (2.0, 5.8, True),  # above ln(300) = 5.70 and above twice the first
        (2.0, 5.6, False),  # no worse than guessing
        (5.0, 9.9, False),  # not twice the first
        (5.0, 10.1, True),
    ],
)
def test_what_counts_as_exploded(
    first: float,
    later: float,
    ends: bool,
    tmp_path: Path,
    make_base: Callable[..., Base],
) -> None:
    job = onebase.Job("a", write_rows(tmp_path, "a", 8), set={"rank": 1})
    job_state = JobState(job, make_base())
    assert job_state.record_loss(first) is None
    for _ in range(EXPLODED_STEPS - 1):
        assert job_state.record_loss(later) is None
    assert job_state.record_loss(first) is None  # it came back
    for _ in range(EXPLODED_STEPS - 1):
        assert job_state.record_loss(later) is None
    assert job_state.record_loss(later) == ("exploded" if ends else None)
    assert job_state.is_finite(later)
    assert not job_state.is_finite(float("nan"))
