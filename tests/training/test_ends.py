"""What training says of ends before it starts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import onebase
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.runs.run import RunStore
from onebase.search.race import race
from onebase.search.space import Configuration, Space


class Heard(Observer):
    """What a training said, in its order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.said.append("a step")

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.said.append("a step")

    def planned(self, plan: Any, configurations: Any) -> None:
        pass

    def halved(self, rung: int, places: Any) -> None:
        pass

    def noted(self, text: str, **facts: Any) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def job(tmp_path: Path) -> onebase.Job:
    file = tmp_path / "rows.jsonl"
    items = [{"question": f"where is parcel {i}?", "answer": f"on its way {i}"} for i in range(12)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return onebase.Job("support", file, set={"epochs": 1, "batch_size": 4})


@pytest.fixture
def endless_base(make_base: Callable[..., Base]) -> Base:
    """Its turns end with a new line, and its tokenizer has no end token."""
    base = make_base()
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace("<|im_end|>", "")
    base.tokenizer.eos_token = None
    return base


def test_a_training_without_an_end_says_so_before_its_first_step(
    job: onebase.Job, endless_base: Base, tmp_path: Path
) -> None:
    heard = Heard()
    workspace = onebase.Workspace(tmp_path / "w")
    onebase.train([job], base=endless_base, workspace=workspace, observer=heard)
    assert heard.said[0].startswith("support: Nothing marks the end of an answer")
    assert set(heard.said[1:]) == {"a step"}
    (run,) = RunStore(workspace).list()
    assert run.metrics()[0]["note"] == heard.said[0]


def test_a_race_without_an_end_says_so_before_its_first_step(
    job: onebase.Job, endless_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    space = Space((Configuration(1, "lora", {"rank": 1}), Configuration(2, "lora", {"rank": 2})))
    race(
        job,
        base=endless_base,
        workspace=onebase.Workspace(tmp_path / "w"),
        observer=heard,
        space=space,
    )
    assert heard.said[0].startswith("Nothing marks the end of an answer")
    assert set(heard.said[1:]) == {"a step"}
    race(job, base=endless_base, workspace=onebase.Workspace(tmp_path / "v"), space=space)
    assert "Nothing marks the end of an answer" in caplog.text


def test_a_training_with_an_end_has_nothing_to_say(
    job: onebase.Job, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    heard = Heard()
    base = make_base()
    base.tokenizer.eos_token = None  # the template ends turns with <|im_end|> all the same
    onebase.train([job], base=base, workspace=onebase.Workspace(tmp_path / "w"), observer=heard)
    assert set(heard.said) == {"a step"}
