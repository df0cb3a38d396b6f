"""`--encoding`: every command that reads a data file takes it, and a resumed run remembers it.

That `generate` and `align score` read by it is tested in test_request_file.
"""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from onebase.cli.app import app
from onebase.cli.display import RunDisplay

QUESTIONS = [f"Где посылка {number}?" for number in range(12)]
ROWS = [{"input": asked, "output": "В понедельник."} for asked in QUESTIONS]
PAIRS = [{"prompt": asked, "chosen": "Скоро.", "rejected": "Нет."} for asked in QUESTIONS]


@pytest.fixture
def russian(desk: Path) -> Path:
    """Data files in cp1251."""
    for name, rows in (("rows.jsonl", ROWS), ("pairs.jsonl", PAIRS)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (desk / name).write_bytes(text.encode("cp1251"))
    (desk / "reward.py").write_text("def short(prompt, answer):\n    return -len(answer)\n")
    return desk


COMMANDS = {
    "data check": ("data", "check", "rows.jsonl"),
    "data check of pairs": ("data", "check", "pairs.jsonl"),
    "train": ("train", "--task", "t", "--data", "rows.jsonl", "--set", "epochs=1"),
    "align dpo": ("align", "dpo", "--task", "t", "--method", "lora", "--data", "pairs.jsonl"),
}


def commands(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command's name and parameters."""
    if not hasattr(command, "list_commands"):
        yield name.strip(), {option.name for option in command.params}
        return
    for inner in command.list_commands(None):
        yield from commands(command.get_command(None, inner), f"{name} {inner}")


READERS = {
    name: options
    for name, options in commands(typer.main.get_command(app))
    if options & {"columns", "file"}
}


@pytest.mark.parametrize("name", list(READERS))
def test_every_command_that_reads_a_file_has_the_option(name: str) -> None:
    assert len(READERS) == 11
    assert "encoding" in READERS[name]


@pytest.mark.usefixtures("russian")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_the_printed_encoding_option_reads_the_file(
    onebase, base: str, command: tuple[str, ...]
) -> None:
    refused = onebase(*command, "--base", base)
    assert refused.code == 3
    named = re.search(r"--encoding (\S+)", refused.err)
    assert named
    done = onebase(*command, "--base", base, "--encoding", named[1], "--json")
    assert done.code == 0, done.err
    if command[0] == "data":
        assert "Где посылка 0?" in done.out


def test_a_tasks_file_can_name_the_encoding(onebase, base: str, russian: Path) -> None:
    (russian / "tasks.yaml").write_text(
        "jobs: [{task: t, data: rows.jsonl, encoding: cp1251, set: {epochs: 1}}]"
    )
    assert onebase("train", "-c", "tasks.yaml", "--base", base).code == 0
    both = onebase("train", "-c", "tasks.yaml", "--base", base, "--encoding", "cp1251")
    assert (both.code, "--encoding" in both.err) == (2, True)


@pytest.mark.usefixtures("russian")
def test_an_unknown_encoding_is_refused_before_the_base_is_loaded(onebase) -> None:
    wrong = onebase("train", "--task", "t", "--data", "rows.jsonl", "--encoding", "cp12511")
    assert wrong.code == 2
    assert "Did you mean 'cp1251'?" in wrong.err
    assert "Loading" not in wrong.err


@pytest.mark.usefixtures("russian")
def test_a_resumed_run_uses_its_encoding(
    onebase, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def pressed(display: RunDisplay, task: str, step: int, record: dict[str, Any]) -> None:
        steps.append(step)
        if steps == [1]:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunDisplay, "step", pressed)
    train = ("train", "--task", "t", "--data", "rows.jsonl", "--base", base, "--encoding", "cp1251")
    assert onebase(*train, "--set", "epochs=2").code == 130
    (run,) = onebase("runs", "list", "--json").json["runs"]
    assert onebase("resume", run["run"]).code == 0
    assert steps == [1, 2, 3, 4]
