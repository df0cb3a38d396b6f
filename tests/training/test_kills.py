"""kill -9 at exact and at random moments: what is resumed ends as what was left alone."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.training.crash_loop import Trainings
from tests.training.test_loop import write_rows

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.runs.run import Run, RunStore

Jobs = list[dict[str, Any]]
TRAINING = "onebase.training"
RUNS = "onebase.runs"


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    running = Trainings()
    yield running
    running.close()


def job(folder: Path, task: str, method: str, **settings: Any) -> dict[str, Any]:
    data = write_rows(folder, task, 14, seed=len(task))
    return {"task": task, "data": str(data), "method": method, "set": settings}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Of different lengths, one with dropout and accumulation, one that stops early, one whole."""
    folder = tmp_path_factory.mktemp("data")
    lora = {"rank": 2, "dropout": 0.3, "batch_size": 2, "accumulation": 2, "epochs": 2}
    early = {"encoder": "lstm", "hidden": 8, "virtual_tokens": 3, "epochs": 5, "patience": 1}
    return [
        job(folder, "a", "lora", save_seconds=0, **lora),
        job(folder, "bb", "p-tuning", batch_size=5, learning_rate=0.3, **early),
        job(folder, "ccc", "full", batch_size=7, epochs=2),
    ]


def adapters(workspace: Path) -> dict[str, str]:
    """The SHA-256 of every version's weights, by its name; each is checked."""
    store = AdapterStore(Workspace(workspace))
    for item in store.list():
        store.verify(item)
    assert all(item.current for item in store.list())
    return {item.name: item.record["sha256"] for item in store.list()}


def only_run(workspace: Path) -> Run:
    (run,) = RunStore(Workspace(workspace)).list()
    return run


def record(run: Run) -> list[dict[str, Any]]:
    """What a run logged, without what depends on the clock and what interruptions add."""
    changing = {"time", "tokens_per_second"}
    lines = [line for line in run.metrics() if "note" not in line]
    return [{k: v for k, v in line.items() if k not in changing} for line in lines]


@pytest.fixture(scope="module")
def whole(
    trainings: Trainings, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The adapters and the record of the run that nothing interrupts."""
    workspace = tmp_path_factory.mktemp("whole")
    assert trainings.run(workspace, jobs) == 0
    assert sorted(adapters(workspace)) == ["a@1", "bb@1", "ccc@1"]
    lines = record(only_run(workspace))
    steps = {line["task"]: line["step"] for line in lines if "loss" in line}
    assert steps["a"] == 8
    assert steps["bb"] < 15  # it stops early
    assert steps["ccc"] == 4
    return adapters(workspace), lines


MOMENTS = {
    "before the base is judged": {"at": f"{TRAINING}.train:base_losses"},
    "after the base is judged": {
        "at": f"{RUNS}.recorder:RunRecorder.base_evaluated",
        "after": True,
    },
    "writing the first checkpoint": {"at": f"{RUNS}.checkpoint:_Hashing.write", "call": 3},
    "in the middle of a step": {"at": f"{TRAINING}.loop:token_losses", "call": 12},
    "one job updated, the other not": {"at": f"{TRAINING}.job_state:JobState.update", "call": 6},
    "logging a step": {"at": "onebase.runs.run:Run.log", "call": 9},
    "during an evaluation": {"at": f"{TRAINING}.loop:mean_losses", "call": 2},
    "one job judged, the other not": {
        "at": f"{TRAINING}.job_state:JobState.record_evaluation",
        "call": 4,
    },
    "writing a checkpoint": {"at": f"{RUNS}.checkpoint:_Hashing.write", "call": 400},
    "before its manifest": {"at": "json:dump", "call": 5},
    "before it is renamed": {"at": "pathlib:Path.rename", "call": 5},
    "after it is renamed": {"at": "pathlib:Path.rename", "call": 5, "after": True},
    "dropping an old checkpoint": {"at": "shutil:rmtree", "call": 9},
    "in the whole model's step": {"at": f"{TRAINING}.job_state:JobState.update", "call": 20},
    "before anything is stored": {"at": f"{TRAINING}.train:store_job"},
    "storing an adapter": {"at": f"{TRAINING}.stored_result:with_prompt_kv"},
    "stored, not yet current": {"at": "onebase.adapters.store:AdapterStore._promote", "call": 2},
    "between two adapters": {"at": f"{TRAINING}.train:store_job", "call": 2},
    "after all are stored": {"at": "onebase.runs.run:Run.finish"},
    "after the run is finished": {"at": f"{RUNS}.checkpointer:Checkpointer.keep_one"},
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_killed_at_one_moment(
    moment: str,
    trainings: Trainings,
    jobs: Jobs,
    whole: tuple[dict[str, str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    assert trainings.run(tmp_path, jobs, kill=MOMENTS[moment]) == -signal.SIGKILL
    run = only_run(tmp_path)
    if moment == "after the run is finished":
        assert run.status == "finished"
        assert not run.resumable
    else:
        assert run.status == "interrupted"
        assert trainings.run(tmp_path, jobs, command="resume") == 0
    assert adapters(tmp_path) == whole[0]
    assert only_run(tmp_path).status == "finished"
    assert record(run) == whole[1]


def test_killed_while_it_is_resumed(
    trainings: Trainings,
    jobs: Jobs,
    whole: tuple[dict[str, str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    moments = [
        {"at": f"{TRAINING}.job_state:JobState.update", "call": 9},
        {"at": "onebase.runs.checkpointer:cut"},
        {"at": "onebase.runs.checkpointer:cut", "after": True},
        {"at": f"{TRAINING}.job_state:JobState.load_state_dict", "call": 2},
        {"at": "onebase.runs.run:Run.reopen"},
        {"at": f"{TRAINING}.job_state:JobState.update", "call": 3},
    ]
    for at, moment in enumerate(moments):
        command = ["resume", "train"][at % 2]  # the same command again goes on too
        assert trainings.run(tmp_path, jobs, command=command, kill=moment) == -signal.SIGKILL
    assert trainings.run(tmp_path, jobs) == 0
    assert adapters(tmp_path) == whole[0]
    assert record(only_run(tmp_path)) == whole[1]
    assert trainings.run(tmp_path, jobs) == 0  # after a finished run: a new version
    assert AdapterStore(Workspace(tmp_path)).get("a").version == 2


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.3, "use_dora": True, "loraplus_lr_ratio": 4.0},
    "qlora": {"rank": 2, "dropout": 0.2, "gradient_checkpointing": True},
    "ia3": {},
    "prompt-tuning": {"virtual_tokens": 3, "init": "random"},
    "p-tuning": {"virtual_tokens": 3, "hidden": 8, "encoder": "lstm"},
    "p-tuning-v2": {"virtual_tokens": 3, "init": "vocab", "schedule": "cosine"},
    "lora+p-tuning+p-tuning-v2": {"virtual_tokens": 3, "dropout": 0.3, "hidden": 8},
    "full": {"weight_decay": 0.1},
}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_goes_on_exactly(method: str, trainings: Trainings, tmp_path: Path) -> None:
    settings = {"batch_size": 4, "epochs": 3, "save_seconds": 0, **METHODS[method]}
    jobs = [job(tmp_path, "a", method, **settings)]
    more: dict[str, Any] = {}
    if method == "qlora":
        more["precision"] = "nf4"
    if method == "full":  # whose own dropout draws from torch itself
        more |= {"architecture": "phi3", "config": {"resid_pdrop": 0.2}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainings.run(whole, jobs, **more) == 0
    for call in (2, 3, 5):
        kill = {"at": f"{TRAINING}.job_state:JobState.update", "call": call}
        assert trainings.run(killed, jobs, kill=kill, command="resume", **more) == -9
    assert trainings.run(killed, jobs, command="resume", **more) == 0
    assert adapters(killed) == adapters(whole)
    assert record(only_run(killed)) == record(only_run(whole))
    assert sum("resumed_from" in line for line in only_run(killed).metrics()) == 3


def kill_at_random(
    trainings: Trainings, workspace: Path, jobs: Jobs, kills: int, longest: float, seed: int
) -> int:
    """Kill trainings after random times, resuming each, until `kills` have met one alive; then
    let the last one end. Returns how many runs were trained.
    """
    chance = random.Random(seed)
    met = 0
    while met < kills:
        command = chance.choice(["train", "resume"])
        process = trainings.start(workspace, jobs, command=command)
        time.sleep(chance.uniform(0, longest))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        met += trainings.wait() == -signal.SIGKILL
    runs = RunStore(Workspace(workspace)).list()
    if not runs or runs[-1].resumable:
        assert trainings.run(workspace, jobs) == 0
    runs = RunStore(Workspace(workspace)).list()
    assert [run.status for run in runs] == ["finished"] * len(runs)
    return len(runs)


def test_killed_at_random_moments(
    trainings: Trainings,
    jobs: Jobs,
    whole: tuple[dict[str, str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    runs = kill_at_random(trainings, tmp_path, jobs, kills=4, longest=0.9, seed=int(time.time()))
    for run in RunStore(Workspace(tmp_path)).list():
        assert record(run) == whole[1]
    store = AdapterStore(Workspace(tmp_path))
    for item in store.list():
        store.verify(item)
        assert item.record["sha256"] == whole[0][f"{item.task}@1"]
    assert len(store.list()) == runs * len(jobs)


@pytest.mark.slow
def test_fifty_kills(
    trainings: Trainings, tmp_path: Path, record_property: pytest.FixtureRequest
) -> None:
    """Until fifty have met a training alive, in runs long enough to be killed many times."""
    jobs = [
        job(tmp_path, "a", "lora", rank=2, dropout=0.3, batch_size=2, epochs=30, save_seconds=0),
        job(tmp_path, "bb", "p-tuning", encoder="lstm", hidden=8, batch_size=3, epochs=25),
        job(tmp_path, "ccc", "p-tuning-v2", accumulation=3, batch_size=2, epochs=20),
        job(tmp_path, "dddd", "full", batch_size=4, epochs=8),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.perf_counter()
    assert trainings.run(whole, jobs) == 0
    alone = time.perf_counter() - began
    kills = 50
    runs = kill_at_random(trainings, killed, jobs, kills, longest=alone / 3, seed=7)
    expected, lines = adapters(whole), record(only_run(whole))
    store = AdapterStore(Workspace(killed))
    same = [
        item.record["sha256"] == expected[f"{item.task}@1"] and not store.verify(item)
        for item in store.list()
    ]
    records = [record(run) == lines for run in RunStore(Workspace(killed)).list()]
    print(
        json.dumps(
            {
                "kills": kills,
                "runs": runs,
                "adapters": len(same),
                "bit_identical": sum(same),
                "whole_records": sum(records),
                "seconds_alone": round(alone, 1),
            }
        )
    )
    assert all(same)
    assert all(records)
    assert len(same) == runs * len(jobs)
