"""A comparison with `tune`: one race a method, on the rows that are not held out."""

import json
import signal
from dataclasses import replace
from typing import Any

import pytest
from tests.compare.tiny_comparison import OPTIONS, Notes

import onebase.compare.tuning as tuning_module
from onebase.adapters.workspace import Workspace
from onebase.compare.compare import compare
from onebase.compare.result import Comparison
from onebase.model.base import Base
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import Observer
from onebase.runs.run import RunStore
from onebase.search.race import RaceResult, race
from onebase.training.job import Job

TOKENS = 3000
# The learning rate of ia3 is given, so that it has one configuration and no race.
TUNED = replace(OPTIONS, methods=("ia3", "lora"), tune=TOKENS)


@pytest.fixture
def tuned_job(job: Job) -> Job:
    settings = {"batch_size": 4, "warmup": 1, "rank": 4, "ia3.learning_rate": 0.01}
    return replace(job, set=settings)


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[RaceResult]:
    """The races that are run."""
    run: list[RaceResult] = []

    def seen(*arguments: Any, **named: Any) -> RaceResult:
        run.append(race(*arguments, **named))
        return run[-1]

    monkeypatch.setattr(tuning_module, "race", seen)
    return run


def settings_of(comparison: Comparison, method: str) -> list[dict[str, Any]]:
    return [dict(arm.settings) for arm in comparison.arms if arm.method == method]


def test_each_method_by_one_race(
    tuned_job: Job, base: Base, workspace: Workspace, races: list[RaceResult]
) -> None:
    notes = Notes()
    first = compare(tuned_job, TUNED, base=base, workspace=workspace, observer=notes)
    assert [result.entries[0].configuration.method for result in races] == ["lora"]
    assert [text for text in notes.texts if text.startswith("Tuning ")] == [
        "Tuning lora: a race of 3,000 tokens."
    ]
    best, plan = races[0].entries[0].configuration, races[0].plan
    lora = settings_of(first, "lora")
    assert len(lora) == 2
    assert lora[0] == lora[1]
    assert lora[0]["epochs"] == plan.epochs
    assert lora[0]["learning_rate"] == best.settings.get("learning_rate", lora[0]["learning_rate"])
    assert (lora[0]["rank"], lora[0]["batch_size"]) == (4, 4)
    assert [settings["learning_rate"] for settings in settings_of(first, "ia3")] == [0.01] * 2
    assert first.settings == "tuned"
    assert "tuned" in json.dumps(
        (workspace.runs / first.run / "report" / "report.md").read_text(encoding="utf-8")
    )
    # One more seed: the same settings, the same arms, no race.
    second = compare(tuned_job, replace(TUNED, seeds=3), base=base, workspace=workspace)
    assert len(races) == 1
    assert settings_of(second, "lora") == [lora[0]] * 3
    assert [arm.seed for arm in second.arms if not arm.reused] == [2, 2, 2]
    # Another budget, another race.
    compare(tuned_job, replace(TUNED, tune=2 * TOKENS), base=base, workspace=workspace)
    assert len(races) == 2


@pytest.mark.parametrize("at", ["before", "after"])
def test_ctrl_c_in_the_race(
    at: str,
    tuned_job: Job,
    base: Base,
    workspace: Workspace,
    races: list[RaceResult],
) -> None:
    """Before the race has trained, and with a best configuration so far."""

    class Cut(Observer):
        def noted(self, text: str, **facts: Any) -> None:
            if at == "before" and text.startswith("Tuning"):
                signal.raise_signal(signal.SIGINT)

        def step(self, task: str, step: int, record: Any) -> None:
            if at == "after":
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="onebase resume"):
        compare(tuned_job, TUNED, base=base, workspace=workspace, observer=Cut())
    (run,) = RunStore(workspace).list()
    assert run.resumable
    kept = sorted(file.name for file in run.path.glob("tuned-*.json"))
    assert len(kept) == 1  # of ia3, which has no race
    continued = compare(tuned_job, TUNED, base=base, workspace=workspace)
    assert continued.run == run.id
    assert settings_of(continued, "lora")[0]["epochs"] == races[-1].plan.epochs
    assert len(list(run.path.glob("tuned-*.json"))) == 2
