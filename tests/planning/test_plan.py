"""Plans: what is made of a trial's measures, the verdict, and what to change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.adapters.workspace import Workspace
from onebase.errors import CapacityError, DataError, UsageError
from onebase.language import set_language
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.model.sizes import sizes_of
from onebase.planning import plan as planning
from onebase.planning.advice import FULL_BYTES, Pass, disk_advice, memory_advice
from onebase.planning.plan import plan, seconds_of
from onebase.training.job import Job

GB = 10**9
FP32, NF4 = (choose(name, device="cpu", stored=torch.float32) for name in ("fp32", "nf4"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    file = tmp_path / "rows.jsonl"
    items = [{"question": f"where is parcel {i}?", "answer": f"on its way {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return Job("support", file, set={"epochs": 3, "batch_size": 4})


def measures(**changes: Any) -> dict[str, Any]:
    """What a trial of three steps measured, in round numbers."""
    task = {
        **{"task": "support", "method": "lora", "trainable": 1000, "state_bytes": 4000},
        **{"rows": 36, "held_out": 4, "epochs": 3, "steps": 27},
        **{"judged_tokens": 400, "base_judged_tokens": 300},
    }
    phase = {
        **{"steps": 27, "tokens": 2700.0, "heavy": 1, "jobs": 1},
        **{"trial_tokens": [150, 100, 100], "trial_seconds": [5.0, 2.0, 2.0]},
        "pass": {"tokens": 150, "rows": 4, "longest": 50},
    }
    return {
        **{"device": "cpu", "seconds": 30.0, "aside_seconds": 4.0, "phases": [phase]},
        **{"tasks": [task], "judged_tokens": 200, "judging_seconds": 1.5},
        **{"base_judged_tokens": 100, "base_judging_seconds": 1.0},
        **{"trunk_tokens": 0, "tried_trunk_tokens": 0, "trunk_seconds": 0.0},
        **{"trunk_token_bytes": 128, "evaluations": 3, "tried_evaluations": 1},
        **{"saving_seconds": 0.5, "checkpoint_bytes": 12_000},
        **{"adapter_bytes": {"support": 5000}},
        **{"memory": {"idle": GB // 4, "loaded": GB, "built": GB, "peak": 2 * GB}},
        **changes,
    }


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The measures of every trial in this test, to be changed."""
    found = measures()
    monkeypatch.setattr(planning, "run_dry_run", lambda *_, **__: found)
    return found


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what is free."""

    def set_room(memory: float, disk: float = 1e12) -> None:
        monkeypatch.setattr(planning, "free_memory", lambda device: int(memory))
        monkeypatch.setattr(planning, "free_disk", lambda path: int(disk))

    set_room(1e12)
    return set_room


def test_the_time_is_the_trial_and_what_the_whole_has_more() -> None:
    steps = (2700 - 350) * 4 / 200
    judging = (3 * 400 - 200) / 200 * 1.5
    base = (300 - 100) / 100 * 1.0
    saving = (3 - 1) * 0.5
    expected = 30 - 4 + steps + judging + base + saving
    assert seconds_of(measures(), save_seconds=60) == pytest.approx(expected)


def test_checkpoints_by_the_clock_take_time() -> None:
    # 54 seconds of learning, 18 between two evaluations: one save in each with 10 between saves.
    by_the_clock = seconds_of(measures(), 10) - seconds_of(measures(), 60)
    assert by_the_clock == pytest.approx(3 * 0.5)
    slow = measures(saving_seconds=2.0)
    # Slow ones wait: a tenth of 54 seconds of learning, 2 seconds each.
    expected = 0.1 * 54
    assert seconds_of(slow, 1) - seconds_of(measures(saving_seconds=None), 1) == pytest.approx(
        expected
    )


def test_a_training_of_one_step_takes_what_its_trial_took() -> None:
    found = measures(evaluations=1)
    found["phases"][0] |= {"tokens": 150.0, "trial_tokens": [150], "trial_seconds": [5.0]}
    found["tasks"][0] |= {"judged_tokens": 200, "base_judged_tokens": 100, "epochs": 1}
    assert seconds_of(found, 60) == pytest.approx(30 - 4)


def test_the_trunk_takes_time_and_memory(job: Job, tiny_folder: Path, tried, room) -> None:
    before = plan([job], base=str(tiny_folder))
    tried |= {"trunk_tokens": 10_000, "tried_trunk_tokens": 1000, "trunk_seconds": 2.0}
    after = plan([job], base=str(tiny_folder))
    assert after.seconds - before.seconds == pytest.approx(9 * 2.0)
    assert after.memory_bytes - before.memory_bytes == 9000 * 128
    tried |= {"trunk_tokens": 10**9}
    most = plan([job], base=str(tiny_folder))  # beyond a bound it is in a file
    assert most.memory_bytes - before.memory_bytes == (1 << 30) - 1000 * 128


@pytest.mark.parametrize(
    ("memory", "disk", "verdict"),
    [
        (2.5e9, 1e12, "fits"),
        (2.4e9, 1e12, "tight"),
        (2e9, 1e12, "tight"),
        (1.9e9, 1e12, "does not fit"),
        (1e12, 60_000, "tight"),
        (1e12, 40_000, "does not fit"),
    ],
)
def test_the_verdict(
    job: Job, tiny_folder: Path, tried, room, memory: float, disk: float, verdict: str
) -> None:
    room(memory, disk)
    made = plan([job], base=str(tiny_folder))
    assert made.verdict == verdict
    assert made.memory_bytes == 2 * GB
    assert made.disk_bytes == 3 * (12_000 + 4000) + 5000
    assert bool(made.advice) == (verdict != "fits")
    error = made.error()
    assert isinstance(error, CapacityError)
    assert error.exit_code == 4
    if verdict == "does not fit":
        assert ("disk" in error.message) == (disk < 1e12)
        assert error.remedy == " ".join(made.advice)


def test_what_a_plan_says(job: Job, tiny_folder: Path, tried, room) -> None:
    made = plan([job], base=str(tiny_folder)).to_dict()
    (task,) = made.pop("tasks")
    assert task["trainable_percent"] == pytest.approx(100 * 1000 / sizes_of(tiny_folder).parameters)
    assert (task["steps"], task["adapter_bytes"]) == (27, 5000)
    assert made.pop("measured") == tried
    assert made.pop("estimated") is True
    assert made == {
        **{"memory_bytes": 2 * GB, "available_bytes": 10**12, "verdict": "fits", "advice": []},
        **{"disk_bytes": 53_000, "free_disk_bytes": 10**12},
        "seconds": pytest.approx(seconds_of(tried, 60)),
    }


def test_what_can_not_even_be_loaded_is_not_tried(
    job: Job, tiny_folder: Path, room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a trial")

    monkeypatch.setattr(planning, "run_dry_run", never)
    sizes = sizes_of(tiny_folder)
    room(4 * sizes.parameters - 1)
    made = plan([job], base=str(tiny_folder))
    assert (made.verdict, made.seconds, made.disk_bytes) == ("does not fit", None, None)
    assert made.memory_bytes == 4 * sizes.parameters
    assert [item.steps for item in made.tasks] == [27]
    assert "at least" in made.error().message
    room((4 + FULL_BYTES) * sizes.parameters - 1)
    full = plan([replace(job, method="full")], base=str(tiny_folder))
    assert full.verdict == "does not fit"
    assert full.tasks[0].trainable == sizes.parameters
    bad = replace(job, data=job.data.parent / "no.jsonl")  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"no\.jsonl"):
        plan([replace(bad, method="full")], base=str(tiny_folder))


def test_a_trial_that_was_stopped(job: Job, tiny_folder: Path, tried, room) -> None:
    tried.clear()
    tried |= {"needed": 3 * GB}
    room(2 * GB)
    made = plan([job], base=str(tiny_folder))
    assert (made.verdict, made.memory_bytes) == ("does not fit", 3 * GB)
    tried |= {"needed": 0}
    assert plan([job], base=str(tiny_folder)).memory_bytes > 2 * GB


def test_wrong_jobs_are_refused_before_a_trial(job: Job, tiny_folder: Path, monkeypatch) -> None:
    monkeypatch.delattr(planning, "run_dry_run")
    for jobs, precision in (([job, job], None), ([], None), ([job], "fp31")):
        with pytest.raises(UsageError):
            plan(jobs, base=str(tiny_folder), precision=precision)
    with pytest.raises(UsageError, match="fp31"):
        plan([job], base="nope", precision="fp31")
    with pytest.raises(UsageError, match="qlora"):
        plan([replace(job, method="qlora")], base=str(tiny_folder), precision="fp32")


def test_a_real_plan_leaves_the_workspace_as_it_was(job: Job, tiny_folder: Path, tmp_path) -> None:
    made = plan([job], base=str(tiny_folder), workspace=Workspace(tmp_path / "ws"))
    assert made.verdict in ("fits", "tight")
    assert made.tasks[0].steps == 27
    assert made.seconds > 1
    assert made.memory_bytes > 100 << 20
    assert not (tmp_path / "ws").exists()
    assert made.measured["phases"][0]["steps"] == 27


def advice(
    job: Job, *more: Job, precision: Any = FP32, tokens: int = 800, rows: int = 8
) -> list[str]:
    sizes = planning.Sizes(1_000_000_000, 900_000_000)
    heaviest = Pass(tokens, rows, 100, 2 * GB)
    return memory_advice([job, *more], precision, sizes, heaviest)


def first_words(texts: list[str]) -> list[str]:
    return [text.split()[0].split("=")[0] for text in texts]


def test_advice_names_what_is_not_chosen_yet_the_largest_first(job: Job) -> None:
    eight = replace(job, set={"batch_size": 8, "accumulation": 2})
    found = advice(eight)
    assert first_words(found) == ["--precision", "gradient_checkpointing", "batch_size", "The"]
    assert "batch_size=4 with accumulation=4" in found[2]
    found = advice(replace(eight, set={"batch_size": 8, "gradient_checkpointing": True}))
    assert first_words(found) == ["--precision", "batch_size", "The"]
    assert first_words(advice(eight, precision=NF4))[0] == "gradient_checkpointing"
    one = replace(job, set={"batch_size": 1, "gradient_checkpointing": True})
    assert first_words(advice(one, precision=NF4, tokens=100, rows=1)) == ["max_tokens", "The"]
    full = advice(replace(job, method="full"))
    assert full[0].startswith("support: method lora instead of full")
    assert not any("nf4" in text for text in full[:-1])
    smallest = replace(one, method="p-tuning-v2")
    assert advice(smallest, precision=NF4, rows=1)[-1].startswith("This is the smallest way")


def test_advice_for_jobs_together(job: Job) -> None:
    found = advice(replace(job, method="full"), replace(job, task="b", method="full"))
    assert found[0].startswith("support, b: method lora")
    assert found[1].startswith("Train the 2 jobs one after another")


def test_advice_for_the_disk(job: Job) -> None:
    assert disk_advice([job])[0].startswith("save_limit=1")
    assert len(disk_advice([replace(job, set={"save_limit": 1})])) == 1


def test_in_chinese(job: Job, tiny_folder: Path, tried, room) -> None:
    set_language("zh")
    room(1.9e9, 40_000)
    made = plan([job], base=str(tiny_folder))
    texts = [*made.advice, made.error().message, *advice(replace(job, method="full"))]
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_sizes_are_those_of_the_loaded_base(tiny_folder: Path, precision: str) -> None:
    sizes = sizes_of(tiny_folder)
    chosen = choose(precision, device="cpu", stored=torch.float32)
    base = Base.load(str(tiny_folder))
    assert sizes.parameters == sum(p.numel() for p in base.model.parameters())
    assert sizes.linear == sum(i * o for i, o in base.shape.linears.values())
    base.hold_in(chosen, "cpu")
    held = sum(p.numel() * p.element_size() for p in base.model.parameters())
    scales = sizes.linear * 0.05 if precision == "nf4" else 0  # bitsandbytes' own tables
    assert sizes.held_in(chosen) == pytest.approx(held, abs=scales)


def test_sizes_of_damaged_files(tmp_path: Path) -> None:
    assert sizes_of(tmp_path).parameters == 0
    for number, content in enumerate([b"", b"\x04\0\0\0\0\0\0\0null", b"\xff" * 20]):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    assert sizes_of(tmp_path).parameters == 0
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345678")
    assert sizes_of(tmp_path).parameters == 4
