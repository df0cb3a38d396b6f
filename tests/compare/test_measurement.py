"""Measuring arms: which count, what earlier runs give, and what is kept over the sessions of a run."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.compare.tiny_comparison import ONE, OPTIONS, SETTINGS, CtrlC, Notes, arm_of

from onebase.adapters.workspace import Workspace
from onebase.compare.compare import compare
from onebase.compare.evidence import Evidence
from onebase.compare.measurement import Measurement
from onebase.compare.report.document import Table
from onebase.compare.report.sections.methods import methods_section
from onebase.model.base import Base
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.interruption import Interrupted
from onebase.runs.run import RunStore
from onebase.training.job import Job


def test_a_diverged_seed_that_kept_a_state_does_not_count(
    job: Job, base: Base, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss exploded after an evaluation: what was stored then is no result of the method."""
    with_sizes = Measurement._with_sizes

    def diverged(self: Measurement, arm: Any, adapter: Any) -> Any:
        exploded = (arm.method, arm.seed) == ("lora", 1)
        adapter.record["metrics"]["diverged"] = exploded
        return with_sizes(self, arm, adapter)

    monkeypatch.setattr(Measurement, "_with_sizes", diverged)
    comparison = compare(job, OPTIONS, base=base, workspace=workspace)
    lora = arm_of(comparison, "lora", 1)
    assert lora.diverged
    assert lora.outcomes
    assert [arm.seed for arm in comparison.arms_of("lora")] == [0]
    assert [arm.seed for arm in comparison.arms_of("p-tuning-v2")] == [0, 1]
    evidence = Evidence.of(comparison)
    assert evidence.mean("lora") == pytest.approx(arm_of(comparison, "lora").metrics["loss"])
    assert evidence.methods["lora"].metrics["loss"] == pytest.approx(evidence.mean("lora"))
    (table,) = [
        block
        for block in methods_section(evidence).blocks
        if isinstance(block, Table) and any("lora" in str(row.cells) for row in block.rows)
    ][:1]
    (row,) = [row for row in table.rows if row.cells[0].startswith("lora")]
    assert f"{evidence.mean('lora'):.2f}" in str(row.cells)


def test_a_damaged_arm_of_another_run_is_measured_anew(
    job: Job, base: Base, workspace: Workspace
) -> None:
    first = compare(job, ONE, base=base, workspace=workspace)
    identity = arm_of(first, "lora").identity
    file = workspace.runs / first.run / "arms" / f"{identity}.json"
    file.write_text('{"method": "lora"', encoding="utf-8")
    notes = Notes()
    second = compare(
        job, replace(ONE, metric="chrf"), base=base, workspace=workspace, observer=notes
    )
    assert [text for text in notes.texts if "is damaged" in text and str(file) in text]
    assert [arm.reused for arm in second.arms] == [True, True, False]
    assert arm_of(second, "lora").outcomes


def test_an_earlier_arm_names_the_run_that_measured_it(
    job: Job, base: Base, workspace: Workspace
) -> None:
    """Also where a second run has only copied it."""
    first = compare(job, ONE, base=base, workspace=workspace)
    compare(job, replace(ONE, metric="chrf"), base=base, workspace=workspace)
    third = compare(job, replace(ONE, metric="rouge_l"), base=base, workspace=workspace)
    assert {arm.run for arm in third.arms} == {first.run}


def test_time_is_that_of_all_sessions(
    job: Job, base: Base, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        compare(job, ONE, base=base, workspace=workspace, observer=CtrlC(2))
    (run,) = RunStore(workspace).list()
    state = Checkpoints(run.checkpoints, 9).newest().state
    assert state is not None
    kept = state["state"]
    assert set(kept["phases"]) == {"alone", "training"}
    assert kept["phases"]["training"] > 0
    assert kept["cpu_seconds"] > 0
    load = Measurement.load_state_dict

    def long_before(self: Measurement, state: dict[str, Any]) -> None:
        load(self, {"phases": {**state["phases"], "training": 1000.0}, "cpu_seconds": 2000.0})

    monkeypatch.setattr(Measurement, "load_state_dict", long_before)
    comparison = compare(job, ONE, base=base, workspace=workspace)
    assert comparison.run == run.id
    assert 1000 < comparison.phases["training"] < 1100
    assert comparison.phases["scoring"] > 0
    assert 2000 < comparison.cpu_seconds < 2100


def test_every_line_names_its_task(job: Job, base: Base, workspace: Workspace) -> None:
    comparison = compare(job, OPTIONS, base=base, workspace=workspace)
    file = workspace.runs / comparison.run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all("task" in line for line in lines)
    steps = {line["task"] for line in lines if "step" in line}
    assert steps == {"lora-0", "lora-1", "p-tuning-v2-0", "p-tuning-v2-1", "scoring"}


def test_settings_of_one_method(job: Job, base: Base, workspace: Workspace) -> None:
    for given in ({"lora.epochs": 5, "epochs": 3}, {"epochs": 3, "lora.epochs": 5}):
        options = replace(OPTIONS, seeds=1)
        mixed = replace(job, set={**{k: v for k, v in SETTINGS.items() if k != "epochs"}, **given})
        comparison = compare(mixed, options, base=base, workspace=workspace)
        assert arm_of(comparison, "lora").settings["epochs"] == 5
        assert arm_of(comparison, "p-tuning-v2").settings["epochs"] == 3
        assert len(arm_of(comparison, "lora").training_losses) == 20
