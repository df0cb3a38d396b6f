"""`onebase plan`: the flags of train, the table, the JSON, exit 4; nothing is written."""

from pathlib import Path
from typing import Any

import pytest

from onebase.planning import plan as planning
from onebase.planning.dry_run import dry_run
from onebase.planning.dry_run_process import request_for

FLAGS = ("--task", "support", "--data", "support.jsonl", "--set", "batch_size=3")


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the dry run in this process, which is faster; the errors are the same."""

    def run_dry_run(jobs: Any, *, base: str, precision: str | None, limit: int) -> dict[str, Any]:
        return {"seconds": 20.0, **dry_run(request_for(jobs, base=base, precision=precision))}

    monkeypatch.setattr(planning, "run_dry_run", run_dry_run)


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch, _here: None) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 50 << 20)


def test_a_plan_in_a_separate_process(onebase, base: str, desk: Path) -> None:
    result = onebase("plan", *FLAGS, "--base", base, "--json")
    assert result.code == 0, result
    assert result.json.keys() >= {
        *("tasks", "memory_bytes", "available_bytes", "seconds", "disk_bytes"),
        *("free_disk_bytes", "verdict", "advice", "estimated", "measured"),
    }
    (task,) = result.json["tasks"]
    assert task.keys() == {
        *("task", "method", "trainable", "trainable_percent", "steps", "adapter_bytes"),
    }
    assert (task["task"], task["method"], task["steps"]) == ("support", "lora", 9)
    assert result.json["estimated"] is True
    assert not (desk / "ws").exists()


@pytest.mark.usefixtures("_here", "trained")
def test_a_table_and_the_verdict_in_words(onebase, base: str, desk: Path) -> None:
    before = sorted(desk.rglob("*"))
    result = onebase("plan", *FLAGS, "--base", base)
    assert result.code == 0
    for words in ("support", "lora", "memory (estimate): ", "time (estimate): ", "It fits."):
        assert words in result.out
    assert result.err.startswith(f"Loading {base} and trying a few steps …")
    assert sorted(desk.rglob("*")) == before


@pytest.mark.usefixtures("_here")
def test_a_tasks_file_and_the_flags_of_train(onebase, base: str, desk: Path) -> None:
    (desk / "tasks.yaml").write_text(
        "jobs: [{task: a, data: support.jsonl}, {task: b, data: mood.jsonl, method: p-tuning-v2}]",
        encoding="utf-8",
    )
    result = onebase("plan", "-c", "tasks.yaml", "--base", base, "--restart", "--json")
    assert [task["method"] for task in result.json["tasks"]] == ["lora", "p-tuning-v2"]
    again = ("--held-out", "support.jsonl", "--seed", "3", "--skip-bad", "--template", "plain")
    more = (
        *FLAGS,
        *again,
        "--instruction",
        "Be kind.",
        "--columns",
        "input=question,output=answer",
    )
    result = onebase("plan", *more, "--method", "ia3", "--base", base, "--json")
    assert result.json["tasks"][0]["method"] == "ia3"


def test_train_and_plan_have_the_same_flags(onebase) -> None:
    def flags(command: str) -> set[str]:
        words = onebase(command, "--help").out.split()
        return {word.strip(",[]") for word in words if word.startswith("--")}

    assert flags("plan") == flags("train")


@pytest.mark.usefixtures("_little_memory")
def test_a_plan_that_does_not_fit_exits_with_4(onebase, base: str, desk: Path) -> None:
    result = onebase("plan", *FLAGS, "--base", base)
    assert result.code == 4
    assert "It does not fit." in result.out
    cause, remedy = result.err.splitlines()[-2:]
    assert cause.startswith("Error: It takes about ")
    assert cause.endswith(" of memory, and 52.4 MB are free.")
    assert remedy.startswith("Remedy: ")
    assert "gradient_checkpointing=true" in remedy
    assert not (desk / "ws").exists()


@pytest.mark.usefixtures("_little_memory")
def test_as_json_the_plan_and_the_error_are_one_object(onebase, base: str) -> None:
    result = onebase("plan", *FLAGS, "--base", base, "--json")
    assert result.code == 4
    assert result.json["verdict"] == "does not fit"
    assert result.json["advice"]
    error = result.json["error"]
    assert error.keys() == {"code", "message", "remedy"}
    assert error["code"] == "capacity"
    assert error["message"].startswith("It takes about ")


def test_a_base_that_cannot_be_loaded(onebase, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    result = onebase("plan", *FLAGS, "--base", base, "--method", "full")
    assert result.code == 4
    assert "memory (estimate): at least " in result.out
    assert "time" not in result.out
    assert "method lora instead of full" in result.err


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("memory", "words"), [(1 << 40, "可以训练"), (50 << 20, "无法训练")], ids=["fits", "does not"]
)
def test_in_chinese(
    onebase, base: str, monkeypatch: pytest.MonkeyPatch, memory: int, words: str
) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: memory)
    result = onebase("plan", *FLAGS, "--base", base, "--lang", "zh")
    assert words in result.out
    assert "内存（估计）：" in result.out
    assert ("错误：" in result.err) == (memory < 1 << 40)


@pytest.mark.usefixtures("_here")
def test_a_loss_that_explodes_in_the_dry_run_is_reported(onebase, base: str) -> None:
    result = onebase("plan", *FLAGS, "--base", base, "--set", "learning_rate=1e30")
    assert result.code == 0
    assert "support: its loss exploded or was not finite in the dry run" in result.out
    assert "It fits." in result.out
    assert "exploded" not in onebase("plan", *FLAGS, "--base", base).out


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--task and --data are required"),
        (("--task", "t", "--data", "no.jsonl"), 3, "no.jsonl"),
        (("--task", "t", "--data", "bad.jsonl"), 3, "bad.jsonl"),
        (("--task", "base", "--data", "support.jsonl"), 2, "'base' can't be a task's name"),
        ((*FLAGS, "--method", "lorra"), 2, "Did you mean 'lora'?"),
        ((*FLAGS, "--set", "rnak=8"), 2, "'rnak'"),
        ((*FLAGS, "--set", "target=nope"), 2, "nope"),
        ((*FLAGS, "--precision", "fp31"), 2, "'fp31'"),
        ((*FLAGS, "--method", "qlora", "--precision", "bf16"), 2, "qlora"),
        ((*FLAGS, "-c", "tasks.yaml"), 2, "-c and --task"),
        (("-c", "no.yaml"), 2, "no.yaml"),
        ((*FLAGS, "--base", "nope"), 1, "'nope'"),
        ((*FLAGS, "--taks", "t"), 2, "--taks"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, tuple) else None,
)
def test_bad_input_as_for_train(
    onebase, base: str, desk: Path, arguments: tuple[str, ...], code: int, words: str, form: Any
) -> None:
    (desk / "bad.jsonl").write_text('{"input": "a"}\n', encoding="utf-8")
    chosen = () if "nope" in arguments else ("--base", base)
    planned = onebase("plan", *arguments, *chosen, *form)
    assert planned.code == code, planned
    assert words in planned.err
    trained = onebase("train", *arguments, *chosen, *form)
    assert trained.code == code
    assert planned.err.splitlines()[-2:] == trained.err.splitlines()[-2:]
    if form:
        assert planned.json == trained.json
        assert planned.json.keys() == {"error"}
    assert not (desk / "ws").exists()
