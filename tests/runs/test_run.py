import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onebase.adapters.workspace import Workspace
from onebase.errors import CorruptFileError, UsageError
from onebase.runs import run as module
from onebase.runs.run import Run, RunStore

CONFIG = {"base": "smollm2-135m", "jobs": [{"task": "客服", "set": {"lr": 1e-05, "bias": None}}]}


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def test_a_new_run_holds_its_config(workspace: Workspace) -> None:
    before = datetime.now(UTC)
    run = Run.create(workspace, CONFIG)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.id)
    seconds = datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    created = seconds + timedelta(seconds=int(run.id[16:], 16) / 65536)
    assert timedelta(milliseconds=-1) < created - before < timedelta(seconds=9)
    assert run.path == workspace.runs / run.id
    assert run.config == CONFIG
    assert "客服" in (run.path / "config.yaml").read_text(encoding="utf-8")
    assert run.status == "running"
    assert run.summary == {}
    assert run.metrics() == []
    assert run.checkpoints == run.path / "checkpoints"
    assert [file.name for file in run.path.iterdir()] == ["config.yaml"]


def test_a_config_can_be_amended(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    run.write_config({**CONFIG, "chosen": "客服"})
    assert run.config == {**CONFIG, "chosen": "客服"}
    assert [file.name for file in run.path.iterdir()] == ["config.yaml"]


def test_a_race_does_not_go_on(workspace: Workspace) -> None:
    for config, resumable in ((CONFIG, True), ({**CONFIG, "race": {}}, False)):
        run = Run.create(workspace, config)
        with run.hold():
            pass
        assert run.status == "interrupted"
        assert run.resumable is resumable
        assert run.is_race is not resumable


def test_runs_are_listed_newest_last(workspace: Workspace) -> None:
    store = RunStore(workspace)
    assert store.list() == []
    assert not workspace.root.exists()
    made = [Run.create(workspace, {"n": n}) for n in range(50)]
    assert store.list() == made
    assert len({run.id for run in made}) == 50


def test_two_runs_never_share_an_id(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["a", "a", "a", "b"])
    monkeypatch.setattr(module, "_run_id", lambda now: next(ids))
    assert Run.create(workspace, {"n": 1}).id == "a"
    assert Run.create(workspace, {"n": 2}).id == "b"
    assert RunStore(workspace).get("a").config == {"n": 1}


def test_a_run_cut_off_while_it_was_created_is_not_listed(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    (workspace.runs / "20200101-000000-0000").mkdir()
    assert RunStore(workspace).list() == [run]


def test_metrics_are_what_was_logged(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    run.log(step=1, loss=2.5, task="客服")
    run.log(step=2, loss=2.25)
    assert run.metrics() == [{"step": 1, "loss": 2.5, "task": "客服"}, {"step": 2, "loss": 2.25}]


def test_a_line_cut_off_does_not_count_and_logging_goes_on_below(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    run.log(step=1)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"time": 1, "st')
    assert [line["step"] for line in run.metrics()] == [1]
    run.log(step=2)
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_first_line_cut_off(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    (run.path / "metrics.jsonl").write_text('{"ti')
    assert run.metrics() == []
    run.log(step=1)
    assert [line["step"] for line in run.metrics()] == [1]


@pytest.mark.parametrize("line", ["{oops", "7", ""])
def test_a_broken_line_in_the_middle_is_named(workspace: Workspace, line: str) -> None:
    run = Run.create(workspace, CONFIG)
    run.log(step=1)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    run.log(step=2)
    with pytest.raises(CorruptFileError, match=r"metrics\.jsonl, line 2, is damaged"):
        run.metrics()


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_how_a_run_ended(workspace: Workspace, status: module.Ending) -> None:
    run = Run.create(workspace, CONFIG)
    before = datetime.now(UTC).replace(microsecond=0)
    run.finish(status, {"eval_loss": 1.5, "status": "odd"})
    assert run.status == status
    ended = run.summary["ended"]
    assert run.summary == {"eval_loss": 1.5, "status": status, "ended": ended}
    assert ended.endswith("+00:00")
    assert before <= datetime.fromisoformat(ended) <= datetime.now(UTC)
    assert RunStore(workspace).get(run.id).status == status
    for _ in range(2):
        run.reopen()
        assert Run(run.path).status == "running"


def test_an_ending_that_cannot_be_written_leaves_none(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    with pytest.raises(TypeError, match="not JSON serializable"):
        run.finish("finished", {"path": Path("a")})
    assert run.status == "running"
    assert [file.name for file in run.path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "odd"}'])
def test_a_damaged_summary_is_named(workspace: Workspace, text: str) -> None:
    run = Run.create(workspace, CONFIG)
    (run.path / "summary.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"summary\.json is damaged"):
        _ = run.status


@pytest.mark.parametrize("text", [b"", b"a: [", b"- 1", b"a: \xff"])
def test_a_damaged_config_is_named(workspace: Workspace, text: bytes) -> None:
    run = Run.create(workspace, CONFIG)
    (run.path / "config.yaml").write_bytes(text)
    with pytest.raises(CorruptFileError, match=r"config\.yaml is damaged") as caught:
        _ = run.config
    assert str(run.path) in caught.value.remedy


def test_a_run_is_found_by_the_beginning_of_its_id(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(["20261124-101530-ab12", "20261124-101530-ab1", "20261125-000000-0000"])
    monkeypatch.setattr(module, "_run_id", lambda now: next(ids))
    first, second, third = (Run.create(workspace, {"n": n}) for n in range(3))
    store = RunStore(workspace)
    assert store.get("20261125") == third
    assert store.get(first.id) == first
    assert store.get(second.id) == second  # exact, though it begins another
    with pytest.raises(UsageError, match="Several runs begin with '20261124'") as caught:
        store.get("20261124")
    assert first.id in caught.value.remedy
    for name in ("2025", "", "..", "*"):
        with pytest.raises(UsageError, match=re.escape(f"Unknown run: {name!r}.")) as caught:
            store.get(name)
        assert all(run.id in caught.value.remedy for run in (first, second, third))


def test_a_run_whose_process_is_gone_is_interrupted(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    assert (run.status, run.held, run.resumable) == ("running", False, False)
    with run.hold():
        assert (run.status, run.held, run.resumable) == ("running", True, False)
        with (
            pytest.raises(UsageError, match=f"Run {run.id} is still running") as caught,
            run.hold(),
        ):
            pass
        assert "Ctrl-C" in caught.value.remedy
        run.finish("interrupted", {})
        assert (run.status, run.resumable) == ("interrupted", False)  # not gone yet
        run.reopen()
    assert (run.status, run.held, run.resumable) == ("interrupted", False, True)


@pytest.mark.parametrize(
    ("ending", "summary", "resumable"),
    [
        ("finished", {}, False),
        ("interrupted", {}, True),
        ("failed", {}, False),  # it came to its end, a job diverged
        ("failed", {"resumable": True}, True),
    ],
)
def test_which_endings_can_be_resumed(
    workspace: Workspace, ending: module.Ending, summary: dict[str, bool], resumable: bool
) -> None:
    run = Run.create(workspace, CONFIG)
    with run.hold():
        run.finish(ending, summary)
    assert run.resumable is resumable


def test_asking_does_not_hold_a_run(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    with run.hold():
        pass
    assert not run.held
    with run.hold():
        assert run.held
        assert run.held


def test_what_was_logged_after_a_mark_can_be_forgotten(workspace: Workspace) -> None:
    run = Run.create(workspace, CONFIG)
    assert run.mark() == 0
    module.cut(run.metrics_file, 0)
    run.log(step=1, task="客服")
    mark = run.mark()
    assert mark == (run.path / "metrics.jsonl").stat().st_size
    run.log(step=2)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3')
    module.cut(run.metrics_file, mark)
    assert [line["step"] for line in run.metrics()] == [1]
    module.cut(run.metrics_file, 1 << 20)  # shorter than the mark: nothing to forget
    run.log(step=2)
    assert [line["step"] for line in run.metrics()] == [1, 2]
    module.cut(run.metrics_file, 0)
    assert run.metrics() == []
