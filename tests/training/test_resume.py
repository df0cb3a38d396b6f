"""Going on with an interrupted run: from the last good checkpoint, or with a clear refusal."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model, tiny_tokenizer
from tests.runs.test_checkpoint import flip, truncate
from tests.training.test_loop import write_rows

import onebase
from onebase.errors import CorruptFileError, DataError, UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.runs import checkpoint, render_date
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import Observer
from onebase.runs.run import Run, RunStore
from onebase.training import job_state
from onebase.training import train as train_module
from onebase.training.job_state import JobState
from onebase.training.train import resume


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


def two_jobs(folder: Path) -> list[onebase.Job]:
    settings = {"batch_size": 4, "epochs": 2, "save_seconds": 0}
    lora = {**settings, "rank": 2, "dropout": 0.2}
    return [
        onebase.Job("a", write_rows(folder, "a", 14, 1), "lora", set=lora),
        onebase.Job("b", write_rows(folder, "b", 9, 2), "prompt-tuning", set=settings),
    ]


@pytest.fixture
def jobs(tmp_path: Path) -> list[onebase.Job]:
    return two_jobs(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> onebase.Workspace:
    return onebase.Workspace(tmp_path / "w")


class Stopping(Observer):
    """Stops a training in the middle of one step, when its last job has learned, and listens."""

    def __init__(self, task: str = "a", step: int | None = None) -> None:
        self.task = task
        self.stop_at = step
        self.steps: list[int] = []
        self.notes: list[str] = []

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        if task == self.task:
            self.steps.append(step)
            if step == self.stop_at:
                raise KeyboardInterrupt

    def noted(self, text: str, **facts: Any) -> None:
        self.notes.append(text)


def interrupted(
    base: Base, jobs: Sequence[onebase.Job], workspace: onebase.Workspace, step: int = 5
) -> Run:
    with pytest.raises(Interrupted):
        onebase.train(jobs, base=base, workspace=workspace, observer=Stopping(step=step))
    run = RunStore(workspace).list()[-1]
    assert run.status == "interrupted"
    assert run.resumable
    return run


def hashes(stored: Sequence[onebase.StoredAdapter]) -> list[str]:
    return [item.record["sha256"] for item in stored]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The adapters of the two jobs when nothing interrupts them."""
    folder = tmp_path_factory.mktemp("expected")
    base = Base(tiny_model("llama"), tiny_tokenizer(), name="tiny-llama")
    workspace = onebase.Workspace(folder / "w")
    return hashes(onebase.train(two_jobs(folder), base=base, workspace=workspace))


def test_a_run_goes_on_to_the_same_adapters(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    seconds = run.summary["seconds"]
    observer = Stopping()
    stored = resume(run.id[:10], base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == [5, 6, 7, 8]
    assert observer.notes == [
        f"Run {run.id} continues from checkpoint 000005 (steps: a 4/8, b 4/4)."
    ]
    assert hashes(stored) == expected
    assert [item.name for item in stored] == ["a@1", "b@1"]
    assert all(item.record["run"] == run.id for item in stored)
    assert run.status == "finished"
    assert run.summary["seconds"] > seconds
    with pytest.raises(UsageError, match="has ended") as caught:
        resume(run.id, base=make_base(), workspace=workspace)
    assert "onebase runs list" in caught.value.remedy


def as_earlier_format(run: Run, number: int, *, moved: bool = True) -> None:
    """Make the newest checkpoint one of an earlier format: 1 did not record whether there was a gradient,
    2 recorded it elsewhere.
    """
    checkpoints = Checkpoints(run.checkpoints, limit=1)
    state = checkpoints.newest().state
    assert state is not None
    state = {**{key: value for key, value in state.items() if key != "state"}, **state["state"]}
    del state["samples_bytes"]
    for job in state["jobs"].values():
        del job["moved"]
        if number == 2:
            job["counts"]["moved"] = moved
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(checkpoint, "FORMAT", number)
        checkpoints.save(state)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_of_an_earlier_format_goes_on_and_is_promoted(
    number: int,
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    run = interrupted(make_base(), jobs, workspace, step=8)
    as_earlier_format(run, number)
    stored = resume(run.id, base=make_base(), workspace=workspace)
    assert hashes(stored) == expected
    assert [onebase.AdapterStore(workspace).get(task).version for task in ("a", "b")] == [1, 1]


def test_a_run_of_an_earlier_format_without_a_gradient_is_not_promoted(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    """One step of `a` is left, which has a gradient; `b` is done."""
    run = interrupted(make_base(), jobs, workspace, step=8)
    as_earlier_format(run, 2, moved=False)
    stored = resume(run.id, base=make_base(), workspace=workspace)
    assert [item.metrics["learned"] for item in stored] == [True, False]
    assert [item.current for item in stored] == [True, False]


@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_with_a_trunk_goes_on_to_the_same_adapters(
    stop: int, tmp_path: Path, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    """Though one job is done, and the trunk is no longer there."""
    jobs = [
        replace(job, method="lora", set={**job.set, "rank": 2, "layers": "top:1"})
        for job in two_jobs(tmp_path)
    ]
    undisturbed = onebase.Workspace(tmp_path / "undisturbed")
    expected = hashes(onebase.train(jobs, base=make_base(), workspace=undisturbed))
    run = interrupted(make_base(), jobs, workspace, step=stop)
    assert hashes(resume(run.id, base=make_base(), workspace=workspace)) == expected


def test_the_same_training_again_goes_on(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    base = make_base()
    again = Stopping()
    stored = onebase.train(jobs, base=base, workspace=workspace, observer=again)
    assert hashes(stored) == expected
    assert again.notes[0].startswith(f"Run {run.id} continues")
    assert [item.id for item in RunStore(workspace).list()] == [run.id]
    second = onebase.train(jobs, base=base, workspace=workspace)  # after a finished run
    assert [item.version for item in second] == [2, 2]
    assert hashes(second) == hashes(stored)


def on_day(day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (render_date, job_state, train_module):
        monkeypatch.setattr(place, "local_time", lambda: datetime(2026, 11, day, 12))


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d %H:%M", "%A"])
def test_the_date_that_a_template_writes_is_part_of_the_run(
    form: str,
    jobs: list[onebase.Job],
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the same command, and by `resume`."""
    base, jobs = make_base(), jobs[:1]
    written = f"{{{{ strftime_now('{form}') }}}}\n" + base.tokenizer.chat_template
    base.tokenizer.chat_template = written
    on_day(26, monkeypatch)
    whole = onebase.train(jobs, base=base, workspace=onebase.Workspace(tmp_path / "whole"))
    for way in ("same command", "resume"):
        workspace, observer = onebase.Workspace(tmp_path / way), Stopping()
        on_day(26, monkeypatch)
        run = interrupted(base, jobs, workspace)
        assert run.config["rendered_at"] == "2026-11-26T12:00:00"
        on_day(27, monkeypatch)
        again = (
            resume(run.id, base=base, workspace=workspace, observer=observer)
            if way == "resume"
            else onebase.train(jobs, base=base, workspace=workspace, observer=observer)
        )
        assert hashes(again) == hashes(whole)
        assert again[0].record["run"] == run.id
        assert any("continues with 2026-11-26" in text for text in observer.notes)
    anew = onebase.train(jobs, base=base, workspace=workspace)
    assert hashes(anew) != hashes(whole)


def test_another_training_is_a_new_run(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    first = interrupted(make_base(), jobs, workspace)
    other = [replace(jobs[0], seed=1), jobs[1]]
    onebase.train(other, base=make_base(), workspace=workspace)
    onebase.train(jobs[:1], base=make_base(), workspace=workspace)
    onebase.train(jobs, base=make_base(seed=1), workspace=workspace)
    onebase.train(list(reversed(jobs)), base=make_base(), workspace=workspace)
    assert len(RunStore(workspace).list()) == 5
    assert first.status == "interrupted"
    observer = Stopping()
    onebase.train(jobs, base=make_base(), workspace=workspace, observer=observer, restart=True)
    assert observer.steps[0] == 1
    assert len(RunStore(workspace).list()) == 6
    # The newest run with these jobs is finished now, so the old one is not gone back to.
    onebase.train(jobs, base=make_base(), workspace=workspace)
    assert len(RunStore(workspace).list()) == 7
    assert first.resumable


def half_write(path: Path) -> None:
    partial = path.with_name(f".{int(path.name) + 1:06d}.partial")
    partial.mkdir()
    (partial / "state.pt").write_bytes((path / "state.pt").read_bytes()[:1000])


DAMAGES: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "truncated": (truncate, "Checkpoint 000005 of run .* is damaged .state.pt has", 4),
    "bit flipped": (flip, "Checkpoint 000005 of run .* is damaged .SHA-256 mismatch", 4),
    "manifest missing": (
        lambda path: (path / "manifest.json").unlink(),
        "Checkpoint 000005 of run .* is damaged .manifest.json is missing",
        4,
    ),
    "emptied": (lambda path: [file.unlink() for file in path.iterdir()], "000005 .* damaged", 4),
    "half written": (half_write, "A checkpoint of run .* was written only in part", 5),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_last_good_checkpoint_is_used_and_said_so(
    damage: str,
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    spoil, said, first = DAMAGES[damage]
    spoil(run.checkpoints / "000005")
    observer = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps[0] == first
    assert len(observer.notes) == 2
    assert re.search(said, observer.notes[0])
    assert f"continues from checkpoint {first:06d}" in observer.notes[1]
    assert hashes(stored) == expected
    notes = [line["note"] for line in run.metrics() if "note" in line]
    assert notes == observer.notes
    steps = [line["step"] for line in run.metrics() if "loss" in line and line["task"] == "a"]
    assert steps == list(range(1, 9))


def test_a_damaged_checkpoint_takes_no_good_one_s_place(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    flip(run.checkpoints / "000005")
    with pytest.raises(Interrupted):
        resume(run.id, base=make_base(), workspace=workspace, observer=Stopping(step=4))
    # The step was made again and the state saved as it stood; both that are kept are good.
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000004", "000005"]
    flip(run.checkpoints / "000005")
    observer = Stopping(step=5)
    with pytest.raises(Interrupted):
        resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == [4, 5]


def test_no_good_checkpoint_starts_from_the_beginning(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    truncate(run.checkpoints / "000004")
    flip(run.checkpoints / "000005")
    observer = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps == list(range(1, 9))
    assert "no checkpoint to continue from" in observer.notes[-1]
    assert len(observer.notes) == 3
    assert hashes(stored) == expected
    judged = [line for line in run.metrics() if "base_eval_loss" in line]
    assert len(judged) == 2


def test_notes_go_to_the_log_where_nobody_listens(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    with caplog.at_level(logging.WARNING, "onebase"):
        resume(run.id, base=make_base(), workspace=workspace)
    assert f"Run {run.id} continues from checkpoint" in caplog.text


def edit(run: Run, old: str, new: str) -> None:
    file = run.path / "config.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_has_changed_is_named(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    held = Path(jobs[0].data).with_name("held.jsonl")
    shutil.copy(jobs[1].data, held)
    jobs[0] = replace(jobs[0], held_out=held)
    run = interrupted(make_base(), jobs, workspace)

    def refusal(base: Base | None = None) -> str:
        with pytest.raises(UsageError, match=f"Run {run.id} can't be resumed") as caught:
            resume(run.id, base=base or make_base(), workspace=workspace)
        assert "Restore it" in caught.value.remedy
        assert run.resumable
        return caught.value.message.partition("has changed: ")[2]

    for file, said in (
        (Path(jobs[1].data), "b: the content of its data."),
        (held, "a: the content of its held-out data."),
    ):
        content = file.read_bytes()
        file.write_bytes(content + content.splitlines()[0] + b"\n")
        assert refusal() == said
        file.write_bytes(content)
    assert refusal(make_base(seed=1)) == "the weights of the base."
    rounded = make_base()
    rounded.hold_in(choose("int8", device="cpu", stored=torch.float32), "cpu")
    assert refusal(rounded) == "precision 'fp32' -> 'int8:fp32'."
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}:"
    rewritten = Base(tiny_model("llama"), tokenizer, name="tiny-llama")
    rows = (
        "how its rows become tokens (the tokenizer, the chat template, or the version of onebase)"
    )
    assert refusal(rewritten) == f"a: {rows}; b: {rows}."
    for old, new, said in (
        ("epochs: 2", "epochs: 5", "a: epochs 2 -> 5."),
        ("seed: 0", "seed: 3", "a: seed 0 -> 3."),
        ("rank: 2", "rank: 3", "a: rank 2 -> 3."),
    ):
        edit(run, old, new)  # what the checkpoint was asked for is in the checkpoint too
        assert refusal() == said
        edit(run, new, old)
    stored = resume(run.id, base=make_base(), workspace=workspace)
    again = onebase.Workspace(workspace.root / "again")
    assert hashes(stored) == hashes(onebase.train(jobs, base=make_base(), workspace=again))


def test_what_is_missing_is_named(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    with pytest.raises(UsageError, match="Unknown run"):
        resume("2026", workspace=workspace)
    run = interrupted(make_base(), jobs, workspace)
    data = Path(jobs[0].data)
    data.rename(data.with_suffix(".gone"))
    with pytest.raises(DataError, match=r"a\.jsonl"):
        resume(run.id, base=make_base(), workspace=workspace)
    data.with_suffix(".gone").rename(data)
    edit(run, "method: lora\n", "methods: lora\n")
    with pytest.raises(CorruptFileError, match=r"config\.yaml is incomplete: 'method'"):
        resume(run.id, base=make_base(), workspace=workspace)


def test_a_run_that_is_still_running_is_refused(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    with run.hold():
        for _ in range(2):
            with pytest.raises(UsageError, match="still running") as caught:
                resume(run.id, base=make_base(), workspace=workspace)
            assert "Wait until it ends" in caught.value.remedy
            run.reopen()  # as the process at work does
        onebase.train(jobs, base=make_base(), workspace=workspace)  # a run of its own
        assert len(RunStore(workspace).list()) == 2
    assert run.status == "interrupted"


def test_relative_paths_are_meant_from_the_run_s_own_folder(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    near = [replace(job, data=Path(job.data).name) for job in jobs]
    run = interrupted(Base.load("base"), near, workspace)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a.jsonl").write_text("{}", encoding="utf-8")  # another one
    assert hashes(resume(run.id, workspace=workspace)) == expected


def test_a_failure_can_be_resumed(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = iter(range(100))
    real = JobState.update

    def out_of_memory(self: JobState) -> tuple[float, float]:
        if next(calls) == 7:
            raise RuntimeError("out of memory")
        return real(self)

    monkeypatch.setattr(JobState, "update", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        onebase.train(jobs, base=make_base(), workspace=workspace)
    (run,) = RunStore(workspace).list()
    assert run.status == "failed"
    assert run.resumable
    observer = Stopping()
    stored = resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert observer.steps[0] == 4
    assert hashes(stored) == expected


def test_one_job_diverged_before_the_interruption(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {**jobs[1].set, "learning_rate": 1e30}
    wild = replace(jobs[1], task="wild", method="lora", set=settings)
    first = Stopping(step=5)
    with pytest.raises(Interrupted):
        onebase.train([jobs[0], wild], base=make_base(), workspace=workspace, observer=first)
    assert [note.partition(":")[0] for note in first.notes] == ["wild stops after step 1, alone"]
    run = RunStore(workspace).list()[-1]
    observer = Stopping()
    with pytest.raises(onebase.OnebaseError, match=r"loss of wild.*Stored: a@1"):
        resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert len(observer.notes) == 1  # that it goes on; the trouble was told of
    lines = [line for line in run.metrics() if "trouble" in line]
    assert [(line["task"], line["trouble"]) for line in lines] == [("wild", "not finite")]
    assert run.status == "failed"
    assert not run.resumable  # it came to its end


def test_other_conditions_are_said(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = interrupted(make_base(), jobs, workspace)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    observer = Stopping()
    resume(run.id, base=make_base(), workspace=workspace, observer=observer)
    assert "under other conditions (threads 1 -> 7)" in observer.notes[0]


def test_a_version_stored_but_damaged_is_stored_again(
    jobs: list[onebase.Job],
    workspace: onebase.Workspace,
    expected: list[str],
    make_base: Callable[..., Base],
) -> None:
    """As after a power cut: its folder has its name, its file's content never reached the disk."""
    (stored, _) = onebase.train(jobs, base=make_base(), workspace=workspace)
    weights = stored.path / "adapter_model.safetensors"
    os.truncate(weights, 0)
    run = RunStore(workspace).list()[-1]
    run.finish("interrupted", {})
    again = resume(run.id, base=make_base(), workspace=workspace)
    assert [item.name for item in again] == ["a@2", "b@1"]
    assert hashes(again) == expected


def test_a_current_version_that_is_newer_stays(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    onebase.train(jobs, base=base, workspace=workspace)
    run = RunStore(workspace).list()[-1]
    onebase.train(jobs[:1], base=base, workspace=workspace)
    run.finish("interrupted", {})
    again = resume(run.id, base=base, workspace=workspace)
    assert [item.name for item in again] == ["a@1", "b@1"]
    assert onebase.AdapterStore(workspace).get("a").version == 2


def test_the_config_says_everything_in_full(
    jobs: list[onebase.Job], workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    jobs[0] = replace(jobs[0], method="lora+p-tuning", set={"virtual_tokens": 2})
    jobs[1] = replace(jobs[1], set={"p-tuning.hidden": 4}, method="lora+p-tuning")
    jobs.append(replace(jobs[0], task="c", set={"learning_rate": 0.5}))
    run = interrupted(make_base(), jobs, workspace, step=3)
    assert run.config["jobs"][0]["set"]["learning_rate"] == {"lora": 2e-3, "p-tuning": 1e-2}
    assert run.config["jobs"][0]["options"]["p-tuning"]["virtual_tokens"] == 2
    text = json.dumps(run.config)
    for name in ("base_fingerprint", "data_sha256", "rows_sha256", "folder", "precision"):
        assert name in text
    resume(run.id, base=make_base(), workspace=workspace)
    assert run.status == "finished"
