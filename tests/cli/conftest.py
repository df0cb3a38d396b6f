"""A tiny random base, tasks trained on it once, and the command run in this process."""

import io
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase import language
from onebase.adapters.workspace import Workspace
from onebase.cli.app import main
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.train import train

SUPPORT = [
    {"question": f"Where is parcel {number}?", "answer": f"Parcel {number} arrives on Monday."}
    for number in range(10)
]
MOODS = [
    {"text": f"The {thing} is {word}.", "label": label}
    for thing in ("lamp", "desk", "rug", "vase")
    for word, label in (("lovely", "good"), ("broken", "bad"), ("grey", "neutral"))
]


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Run = Callable[..., Result]


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _python_s_own_ctrl_c() -> Iterator[None]:
    """In the background a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(tiny_folder: Path) -> str:
    """The folder of a random Llama with a ChatML template."""
    return str(tiny_folder)


@pytest.fixture(scope="session")
def _trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    write_rows(root / "support.jsonl", SUPPORT)
    write_rows(root / "mood.jsonl", MOODS)
    support = Job("support", root / "support.jsonl", instruction="Be kind.", set={"epochs": 1})
    mood = Job("mood", root / "mood.jsonl", method="prompt-tuning", set={"epochs": 1})
    loaded, workspace = Base.load(base), Workspace(root / "ws")
    train([support, mood], base=loaded, workspace=workspace)
    train([support], base=loaded, workspace=workspace)
    return workspace.root


@pytest.fixture
def desk(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder that commands run in: English, offline, no base in the cache, a `ws` to come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("ONEBASE_WORKSPACE", "ws")
    write_rows(tmp_path / "support.jsonl", SUPPORT)
    write_rows(tmp_path / "mood.jsonl", MOODS)
    return tmp_path


@pytest.fixture
def trained(desk: Path, _trained: Path) -> Path:
    """The desk's workspace with support@1, support@2 (current) and mood@1."""
    shutil.copytree(_trained, desk / "ws")
    return desk / "ws"


@pytest.fixture
def onebase(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `onebase ARGUMENTS…` with `stdin`, as a process of its own would."""

    def run(*arguments: str | Path, stdin: str = "") -> Result:
        # `--lang` lasts as long as the process: each command here begins without one.
        monkeypatch.setattr(language, "_current", ContextVar("language", default=None))
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(item) for item in arguments])
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capsys.readouterr())

    return run
