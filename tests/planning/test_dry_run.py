"""The trial of a training: what it measures, in this process and in one of its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.engine.rows import pack_rows
from onebase.errors import DataError, OnebaseError, UsageError
from onebase.model.base import Base
from onebase.planning import dry_run_process
from onebase.planning.dry_run import dry_run
from onebase.planning.dry_run_process import request_for, run_dry_run
from onebase.training.job import Job
from onebase.training.job_state import JobState

MB = 1 << 20


@pytest.fixture
def job(tmp_path: Path) -> Job:
    file = tmp_path / "rows.jsonl"
    items = [{"question": f"where is parcel {i}?", "answer": f"on its way {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return Job("support", file, set={"epochs": 3, "batch_size": 4})


@pytest.fixture
def measure(tiny_folder: Path) -> Callable[..., dict[str, Any]]:
    def run(*jobs: Job, precision: str | None = None) -> dict[str, Any]:
        request = request_for(jobs, base=str(tiny_folder), precision=precision)
        with torch.random.fork_rng(devices=[]):
            return dry_run(json.loads(json.dumps(request)))

    return run


def test_what_is_measured(job: Job, measure, tiny_folder: Path) -> None:
    found = measure(job)
    (task,) = found["tasks"]
    assert (task["rows"], task["held_out"], task["epochs"], task["steps"]) == (36, 4, 3, 27)
    assert task["method"] == "lora"
    assert task["state_bytes"] == 4 * task["trainable"]
    (phase,) = found["phases"]
    assert (phase["steps"], phase["heavy"], phase["pass"]["rows"]) == (27, 1, 4)
    assert len(phase["trial_seconds"]) == len(phase["trial_tokens"]) == 3
    assert min(phase["trial_seconds"]) > 0
    assert found["evaluations"] == 3
    assert found["tried_evaluations"] == 1
    learner = JobState(job, Base.load(str(tiny_folder)))
    held_out = pack_rows(learner.data.held_out, {"support": learner.adapter.contribution()}).pack
    assert found["judged_tokens"] == task["judged_tokens"] == len(held_out.ids)
    assert found["saving_seconds"] > 0
    # The adapter, AdamW's two moments of it, and what torch.save adds.
    assert 0 < found["checkpoint_bytes"] - 3 * task["state_bytes"] < 64 << 10
    assert 0 < found["adapter_bytes"]["support"] - task["state_bytes"] < 16 << 10
    memory = found["memory"]
    assert 0 < memory["idle"] <= memory["peak"]
    assert found["trunk_tokens"] == 0
    assert found["trouble"] == []


def test_jobs_with_bases_of_their_own(job: Job, measure) -> None:
    full = replace(job, task="whole", method="full")
    found = measure(job, replace(job, task="other", method="ia3"), full)
    shared, own = found["phases"]
    assert (shared["jobs"], own["jobs"]) == (2, 1)
    assert [len(phase["trial_seconds"]) for phase in (shared, own)] == [3, 3]
    assert found["evaluations"] == 6  # three of the two together, three of the other
    assert found["adapter_bytes"].keys() == {"support", "other", "whole"}


def test_the_trunk_is_measured(job: Job, measure, tiny_folder: Path) -> None:
    found = measure(replace(job, set={**job.set, "layers": "top:1"}))
    data = JobState(job, Base.load(str(tiny_folder))).data
    texts = sum(len(row.ids) for row in (*data.train, *data.held_out))
    assert texts == found["trunk_tokens"] > found["tried_trunk_tokens"] > 0
    assert found["trunk_seconds"] > 0
    assert found["trunk_token_bytes"] == 4 * 32


def test_nothing_held_out(job: Job, measure) -> None:
    found = measure(replace(job, set={**job.set, "held_out": 0}))
    assert found["judged_tokens"] == found["base_judged_tokens"] == 0


def test_a_process_of_its_own(job: Job, tiny_folder: Path) -> None:
    found = run_dry_run([job], base=str(tiny_folder), precision=None, limit=1 << 40)
    assert found["seconds"] > found["aside_seconds"]
    assert 100 * MB < found["memory"]["peak"] < 2000 * MB
    assert found["threads"] == torch.get_num_threads()


def test_errors_come_through_as_they_are(
    job: Job, measure, tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"input": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl") as raised:
        run_dry_run([replace(job, data=file)], base=str(tiny_folder), precision=None, limit=1 << 40)
    with pytest.raises(DataError) as direct:
        measure(replace(job, data=file))
    assert (raised.value.message, raised.value.remedy) == (
        direct.value.message,
        direct.value.remedy,
    )


def test_it_is_stopped_before_the_memory_is_used_up(job: Job, tiny_folder: Path) -> None:
    found = run_dry_run([job], base=str(tiny_folder), precision=None, limit=20 * MB)
    assert found.keys() == {"needed"}
    assert found["needed"] > 20 * MB


ENDINGS = [
    ('print(\'{"out_of_memory": "no"}\')', {"needed": 1 << 40}),
    ("import os; os.kill(os.getpid(), 9)", {"needed": 1 << 40}),
    ('print("said by a library"); print(\'{"a": 1}\')', {"a": 1}),
]


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the trial's process run `code`."""
    real = dry_run_process.subprocess.Popen

    def start(command: list[str], **rest: Any) -> Any:
        return real([command[0], "-c", code], **rest)

    monkeypatch.setattr(dry_run_process.subprocess, "Popen", start)


@pytest.mark.parametrize(("code", "expected"), ENDINGS)
def test_how_it_may_end(
    job: Job, monkeypatch: pytest.MonkeyPatch, code: str, expected: dict[str, int]
) -> None:
    instead(monkeypatch, code)
    found = run_dry_run([job], base="tiny", precision=None, limit=1 << 40)
    found.pop("seconds", None)
    assert found == expected


def test_a_trial_that_fails_says_why(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "raise SystemExit('it broke')")
    with pytest.raises(OnebaseError, match="it broke") as raised:
        run_dry_run([job], base="tiny", precision=None, limit=1 << 40)
    assert not isinstance(raised.value, UsageError)
