"""What goes wrong in a chat is told, and ends neither the chat nor its answers."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Run

from onebase.engine.batch import Batch

SHORT = ("--precision", "fp32", "--max-tokens", "3")


def damaged(workspace: Path, _: pytest.MonkeyPatch) -> str:
    (workspace / "adapters/mood/1/adapter_model.safetensors").write_bytes(b"no weights")
    return "mood@1"


def base_gone(workspace: Path, _: pytest.MonkeyPatch) -> str:
    file = workspace / "adapters/mood/1/onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "base": "/gone/base"}), encoding="utf-8")
    return "/gone/base"


def of_another_base(workspace: Path, _: pytest.MonkeyPatch) -> str:
    file = workspace / "adapters/mood/1/onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "base_fingerprint": "0" * 16}), encoding="utf-8")
    return "since mood@1 was trained"


def reward_model(workspace: Path, _: pytest.MonkeyPatch) -> str:
    file = workspace / "adapters/mood/1/onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "head": "reward"}), encoding="utf-8")
    return "reward model"


def unreadable(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "weights")

    monkeypatch.setattr("onebase.adapters.store.file_sha256", refuse)
    return "Permission denied"


def edited(workspace: Path, _: pytest.MonkeyPatch) -> str:
    file = workspace / "adapters/mood/1/onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "template": {"kind": 5}}), encoding="utf-8")
    return "mood can't be loaded"


@pytest.mark.parametrize(
    "fault", [damaged, base_gone, of_another_base, reward_model, unreadable, edited]
)
def test_a_task_that_cannot_be_loaded_changes_nothing(
    fault: Callable[..., str], onebase: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_words: list[str] = []
    readline = io.StringIO.readline

    def lines(stream: io.StringIO) -> str:
        line = readline(stream)
        if line.startswith("/task"):  # by now the first task has been loaded
            expected_words.append(fault(trained, monkeypatch))
        return line

    monkeypatch.setattr("io.StringIO", type("Typed", (io.StringIO,), {"readline": lines}))
    command = ("chat", "--task", "support", *SHORT, "--json")
    result = onebase(*command, stdin="Hi\n/task mood\nHello\n")
    assert result.code == 0, result.err
    assert [(item["task"], item["prompt"]) for item in result.json["answers"]] == [
        ("support", "Hi"),
        ("support", "Hello"),
    ]
    assert expected_words[0] in result.err
    assert "Now: mood" not in result.err


def too_long(_: pytest.MonkeyPatch) -> tuple[str, str]:
    return "word " * 4000, "/reset"


def half_a_character(_: pytest.MonkeyPatch) -> tuple[str, str]:
    return "half \ud83d", "half a character"


def not_a_number(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    taken = Batch._process_logits

    def broken(batch: Batch, chunks: Any, logits: torch.Tensor) -> None:
        if any(chunk.request.prompt[-12:] for chunk in chunks if _asks(chunk, "BREAK")):
            logits = logits * torch.nan
        taken(batch, chunks, logits)

    monkeypatch.setattr(Batch, "_process_logits", broken)
    return "BREAK", "No answer could be generated"


def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    taken = Batch._process_logits

    def broken(batch: Batch, chunks: Any, logits: torch.Tensor) -> None:
        if any(_asks(chunk, "BREAK") for chunk in chunks):
            raise MemoryError
        taken(batch, chunks, logits)

    monkeypatch.setattr(Batch, "_process_logits", broken)
    return "BREAK", "MemoryError"


def _asks(chunk: Any, text: str) -> bool:
    request = chunk.request
    return text in request.base.tokenizer.decode(list(request.prompt))


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("fault", [too_long, half_a_character, not_a_number, out_of_memory])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_chat_continues_after_a_failed_answer(
    fault: Callable[..., tuple[str, str]],
    as_json: bool,
    onebase: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("chat", "--task", "support", *SHORT, *(["--json"] if as_json else []))
    without_fault = onebase(*command, stdin="Hi\nHello\n")
    line, words = fault(monkeypatch)
    result = onebase(*command, stdin=f"Hi\n{line}\nHello\n")
    assert result.code == 0, result.err
    assert words in result.err
    assert "Traceback" not in result.err
    if not as_json:
        assert result.out == without_fault.out
        return
    first, failed, last = result.json["answers"]
    # A failed answer is not part of the conversation.
    assert [first, last] == without_fault.json["answers"]
    assert failed["prompt"] == line.strip()
    assert failed["error"].keys() == {"code", "message", "remedy"}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("answered", [0, 1, 2])
def test_the_answers_are_printed_after_ctrl_c(
    answered: int, onebase: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = io.StringIO.readline

    def lines(stream: io.StringIO) -> str:
        line = readline(stream)
        if line.startswith("Ctrl-C"):
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("io.StringIO", type("Typed", (io.StringIO,), {"readline": lines}))
    typed = "Hi\n" * answered + "Ctrl-C\n"
    result = onebase("chat", "--task", "support", *SHORT, "--json", stdin=typed)
    assert result.code == 130
    assert len(result.json["answers"]) == answered


@pytest.mark.usefixtures("trained")
def test_reset_clears_a_full_context(onebase: Run, base: str, desk: Path) -> None:
    shutil.copytree(base, desk / "short")
    file = desk / "short/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "max_position_embeddings": 60}), encoding="utf-8")
    lines = [*["Hello, how are you?"] * 4, "/reset", "Hello, how are you?"]
    command = ("chat", "--base", "short", *SHORT, "--json")
    result = onebase(*command, stdin="\n".join(lines))
    assert result.code == 0, result.err
    answers = result.json["answers"]
    assert "error" in answers[3]
    assert "context of 60" in answers[3]["error"]["message"]
    assert answers[4] == answers[0]
