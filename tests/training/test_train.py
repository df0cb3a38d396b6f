"""From jobs to stored versions."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import onebase
from onebase.adapters.runs import RunStore
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.training.learner import Learner


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    items = [{"question": f"where is parcel {i}?", "answer": f"on its way {i}"} for i in range(12)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return file


def job(rows: Path, **changes: Any) -> onebase.Job:
    settings = {"rank": 2, "epochs": 3, "batch_size": 4, "save_limit": 1}
    return onebase.Job(**{"task": "support", "data": rows, "set": settings, **changes})


def test_a_training_leaves_a_version_and_a_record(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    base = make_base()
    first = onebase.train([job(rows)], base=base, workspace=workspace)[0]
    second = onebase.train([job(rows)], base=base, workspace=workspace)[0]
    assert (first.version, second.version) == (1, 2)
    assert {"adapter_config.json", "adapter_model.safetensors", "onebase.json"} <= {
        file.name for file in second.path.iterdir()
    }
    weights = [(item.path / "adapter_model.safetensors").read_bytes() for item in (first, second)]
    assert weights[0] == weights[1]  # one seed, bit-identical adapters
    record = second.record
    assert record["base_fingerprint"] == base.fingerprint()
    assert record["metrics"]["eval_loss"] < record["metrics"]["base_eval_loss"]
    run = RunStore(workspace).get(record["run"])
    assert run.status == "finished"
    metrics = run.metrics()
    assert sum("learning_rate" in line for line in metrics) == 9
    assert sum("eval_loss" in line for line in metrics) == 3
    assert len(list((run.checkpoints / "support").glob("*.pt"))) <= 2
    assert not list((run.checkpoints / "support").glob("*.partial"))


class Interrupting:
    def started(self, learners: Sequence[Learner]) -> None:
        pass

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        if learner.step == 2:
            raise KeyboardInterrupt

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        pass


def test_an_interruption_leaves_no_adapter_and_says_so(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(KeyboardInterrupt):
        onebase.train([job(rows)], base=make_base(), workspace=workspace, watcher=Interrupting())
    assert [run.status for run in RunStore(workspace).list()] == ["interrupted"]
    assert onebase.AdapterStore(workspace).list() == []


def test_a_bad_row_trains_nothing_unless_skipped(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    with rows.open("a", encoding="utf-8") as stream:
        stream.write('{"question": "and this?", "answer": ""}\n')
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(DataError, match="13"):
        onebase.train([job(rows)], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()
    stored = onebase.train([job(rows, skip_bad=True)], base=make_base(), workspace=workspace)
    run = RunStore(workspace).get(stored[0].record["run"])
    skipped = json.loads((run.path / "skipped-support.jsonl").read_text(encoding="utf-8"))
    assert skipped["line"] == 13
    assert skipped["column"] == "answer"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "lara"}, "lora"),
        ({"set": {"rnak": 4}}, "rank"),
        ({"set": {"rank": -1}}, "rank=-1"),
        ({"set": {"epochs": "many"}}, "epochs='many'"),
        ({"method": "p-tuning", "set": {"rank": 4}}, "virtual_tokens"),
        ({"task": "base"}, "base"),
        ({"set": {"target": "q_prj"}}, "q_proj"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    named: str,
    rows: Path,
    tmp_path: Path,
    make_base: Callable[..., Base],
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(UsageError, match=named):
        onebase.train([job(rows, **changes)], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()
