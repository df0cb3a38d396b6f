"""`onebase resume`, and the same `train` command again."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.display import RunDisplay

FLAGS = (
    "--task",
    "support",
    "--data",
    "support.jsonl",
    "--set",
    "epochs=3",
    "--set",
    "batch_size=3",
)


class Pressed:
    """Ctrl-C in the middle of one step of the next training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.steps: list[int] = []
        real = RunDisplay.step

        def pressed(display: RunDisplay, task: str, step: int, record: dict[str, Any]) -> None:
            real(display, task, step, record)
            self.steps.append(step)
            if step == self.at:
                self.at = None
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(RunDisplay, "step", pressed)


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pressed]:
    # In the background a shell has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Pressed(monkeypatch)
    signal.signal(signal.SIGINT, before)


def weights(workspace: Path, version: int = 1) -> bytes:
    return (workspace / f"adapters/support/{version}/adapter_model.safetensors").read_bytes()


def test_an_interrupted_training_is_resumed(
    onebase, base: str, desk: Path, ctrl_c: Pressed
) -> None:
    whole = onebase("train", *FLAGS, "--base", base, "--json", "--workspace", "whole")
    ctrl_c.at = 4
    stopped = onebase("train", *FLAGS, "--base", base)
    assert stopped.code == 130
    assert stopped.out == ""
    (run,) = onebase("runs", "list", "--json").json["runs"]
    assert (run["status"], run["resumable"]) == ("interrupted", True)
    assert f"Run {run['run']} was interrupted." in stopped.err
    assert stopped.err.endswith(f"Remedy: Continue with: onebase resume {run['run']}\n")
    assert not (desk / "ws/adapters").exists()

    listed = onebase("runs", "list")
    assert "interrupted" in listed.out
    assert listed.err == f"Continue the last one: onebase resume {run['run']}\n"

    ctrl_c.steps.clear()
    resumed = onebase("resume", run["run"], "--json")
    assert resumed.code == 0
    assert ctrl_c.steps == [5, 6, 7, 8, 9]
    assert "continues from checkpoint 000003 (steps: support 4/9)." in resumed.err
    assert "step 9/9" in resumed.err
    assert resumed.json.keys() == whole.json.keys()
    assert resumed.json["run"] == run["run"]
    for mine, theirs in zip(resumed.json["adapters"], whole.json["adapters"], strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["eval_loss"] == theirs["eval_loss"]
        assert mine["version"] == 1
    assert weights(desk / "ws") == weights(desk / "whole")
    shown = onebase("runs", "show", run["run"])
    assert "continues from checkpoint 000003" in shown.out
    assert onebase("runs", "list").err == ""


def test_the_same_command_again_continues(onebase, base: str, desk: Path, ctrl_c: Pressed) -> None:
    ctrl_c.at = 5
    assert onebase("train", *FLAGS, "--base", base).code == 130
    ctrl_c.steps.clear()
    again = onebase("train", *FLAGS, "--base", base)
    assert again.code == 0
    assert ctrl_c.steps == [6, 7, 8, 9]
    assert "continues from checkpoint" in again.err
    assert again.out.startswith("support@1 (lora)")
    third = onebase("train", *FLAGS, "--base", base)
    assert third.out.startswith("support@2 (lora)")
    assert weights(desk / "ws", 1) == weights(desk / "ws", 2)


def test_restart_starts_over(onebase, base: str, ctrl_c: Pressed) -> None:
    ctrl_c.at = 5
    assert onebase("train", *FLAGS, "--base", base).code == 130
    ctrl_c.steps.clear()
    assert onebase("train", *FLAGS, "--base", base, "--restart").code == 0
    assert ctrl_c.steps[0] == 1
    runs = onebase("runs", "list", "--json").json["runs"]
    assert [run["status"] for run in runs] == ["interrupted", "finished"]


def test_an_interruption_as_json(onebase, base: str, ctrl_c: Pressed) -> None:
    ctrl_c.at = 1
    stopped = onebase("train", *FLAGS, "--base", base, "--json", "--workspace", "else where")
    assert stopped.code == 130
    error = stopped.json["error"]
    assert error["code"] == "interrupted"
    (run,) = onebase("runs", "list", "--json", "--workspace", "else where").json["runs"]
    assert error["remedy"] == f"Continue with: onebase resume {run['run']} --workspace 'else where'"


def test_in_chinese(onebase, base: str, ctrl_c: Pressed) -> None:
    ctrl_c.at = 4
    stopped = onebase("train", *FLAGS, "--base", base, "--lang", "zh")
    (run,) = onebase("runs", "list", "--json").json["runs"]
    assert stopped.err.endswith(f"解决：继续训练：onebase resume {run['run']}\n")
    resumed = onebase("resume", run["run"], "--lang", "zh")
    assert f"训练 {run['run']} 从检查点 000003 继续（步数：support 4/9）。" in resumed.err


def test_a_damaged_checkpoint_is_reported(onebase, base: str, desk: Path, ctrl_c: Pressed) -> None:
    ctrl_c.at = 5
    onebase("train", *FLAGS, "--base", base)
    (run,) = (desk / "ws/runs").iterdir()
    newest = max((run / "checkpoints").iterdir())
    (newest / "state.pt").write_bytes(b"")
    resumed = onebase("resume", run.name)
    assert resumed.code == 0
    assert f"Checkpoint {newest.name} of run {run.name} is damaged (state.pt has 0" in resumed.err


@pytest.mark.usefixtures("trained")
def test_a_run_that_ended_is_refused(onebase) -> None:
    run = onebase("runs", "list", "--json").json["runs"][0]
    assert run["resumable"] is False
    result = onebase("resume", run["run"], "--json")
    assert result.code == 2
    assert result.json["error"]["code"] == "usage"
    assert "has ended (finished)" in result.json["error"]["message"]


def test_an_unknown_run_and_an_empty_workspace(onebase) -> None:
    result = onebase("resume", "20260101")
    assert result.code == 2
    assert "Unknown run: '20260101'" in result.err
    assert onebase("resume").code == 2


def test_changed_data_is_named(onebase, base: str, desk: Path, ctrl_c: Pressed) -> None:
    ctrl_c.at = 5
    onebase("train", *FLAGS, "--base", base)
    rows = (desk / "support.jsonl").read_text(encoding="utf-8").splitlines()
    more = json.dumps({"question": "And this?", "answer": "No."})
    (desk / "support.jsonl").write_text("\n".join([*rows, more]) + "\n", encoding="utf-8")
    (run,) = (desk / "ws/runs").iterdir()
    result = onebase("resume", run.name)
    assert result.code == 2
    assert "has changed: support: the content of its data." in result.err
    assert "Restore it" in result.err
    assert onebase("train", *FLAGS, "--base", base).code == 0  # other data: a run of its own
    assert len(list((desk / "ws/runs").iterdir())) == 2
