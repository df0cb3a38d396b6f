"""What alignment says of ends before it starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from onebase.adapters.workspace import Workspace
from onebase.align import rewards
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.kto import train_kto
from onebase.align.ppo import train_ppo
from onebase.align.unlearned import nothing_better
from onebase.model.base import Base
from onebase.runs.observer import Observer

Write = Callable[[str, list[dict[str, Any]]], Path]


class Heard(Observer):
    """What an alignment said, in its order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.said.append("a step")

    def noted(self, text: str, **facts: Any) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr(
        rewards, "load_function", lambda *_: lambda prompt, answer, row: len(answer)
    )


@pytest.fixture(params=["dpo", "kto", "ppo"])
def align(
    request: pytest.FixtureRequest, pairs: Path, judged: Path, write: Write
) -> Callable[..., Any]:
    """Any of the trainings, at its shortest."""
    prompts = write("prompts.jsonl", [{"prompt": f"where is {at}"} for at in range(8)])
    data = {"dpo": pairs, "kto": judged, "ppo": prompts}[request.param]
    sizes: dict[str, Any] = {"epochs": 1, "batch_size": 8}
    if request.param == "ppo":
        sizes = {"steps": 1, "prompts": 2, "max_tokens": 4}

    def run(base: Base, workspace: Workspace, **more: Any) -> Heard:
        heard = Heard()
        settings: dict[str, Any] = {"base": base, "workspace": workspace, "observer": heard}
        job = AlignJob("desk", data, "lora", set={**sizes, **more})
        if request.param == "ppo":
            train_ppo(job, "m:f", **settings)
        else:
            {"dpo": train_dpo, "kto": train_kto}[request.param](job, **settings)
        return heard

    return run


def test_without_an_end_it_says_so_before_its_first_step(
    align: Callable[..., Any], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base()
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace("<|im_end|>", "")
    base.tokenizer.eos_token = None
    heard = align(base, Workspace(tmp_path / "w"))
    assert heard.said[0].startswith("Nothing marks the end of an answer")
    assert set(heard.said[1:]) == {"a step"}


def test_with_an_end_it_has_nothing_to_say(
    align: Callable[..., Any], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base()
    base.tokenizer.eos_token = None  # the template ends turns with <|im_end|> all the same
    said = set(align(base, Workspace(tmp_path / "w")).said)
    assert said - {nothing_better()} == {"a step"}  # which one step may well come to
