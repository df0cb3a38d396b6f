"""A chat template that writes the date: an alignment that goes on keeps that of its beginning."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.align.conftest import Notes

from onebase.adapters.workspace import Workspace
from onebase.align import ppo_setup, preference_training, rewards
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.kto import train_kto
from onebase.align.ppo import train_ppo
from onebase.align.resume import resume_aligned
from onebase.align.reward_model import train_reward
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.runs import render_date
from onebase.runs.checkpointer import Checkpointer
from onebase.runs.observer import Observer

Bases = Callable[..., Base]
SMALL = {"epochs": 2, "batch_size": 8, "max_tokens": 96, "rank": 2}
ROLLED = {"steps": 2, "prompts": 2, "max_tokens": 2, "judge_answers": 2, "judge_every": 1}


def on_day(day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (render_date, preference_training, ppo_setup):
        monkeypatch.setattr(module, "local_time", lambda: datetime(2026, 11, day, 12))


@pytest.fixture
def dated_base(make_base: Bases) -> Bases:
    def make() -> Base:
        base = make_base()
        before = base.tokenizer.chat_template
        base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + before
        return base

    return make


def ppo(job: AlignJob, **more: Any) -> Any:
    return train_ppo(job, "mine:f", **more)


TRAINERS: dict[str, Any] = {
    "dpo": train_dpo,
    "kto": train_kto,
    "reward": train_reward,
    "ppo": ppo,
}


@pytest.fixture
def files(pairs: Path, judged: Path, write: Callable[..., Path]) -> dict[str, Path]:
    prompts = write("prompts.jsonl", [{"prompt": f"q{at}"} for at in range(4)])
    return {"dpo": pairs, "kto": judged, "reward": pairs, "ppo": prompts}


class Stop(Observer):
    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        if step == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["resume", "same command"])
@pytest.mark.parametrize("kind", list(TRAINERS))
def test_it_goes_on_with_the_rows_that_it_began_with(
    kind: str,
    way: str,
    files: dict[str, Path],
    dated_base: Bases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        rewards, "load_function", lambda *_: lambda prompt, answer, row: len(answer)
    )
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    settings = {"rank": 2, **ROLLED} if kind == "ppo" else SMALL
    job, trainer = AlignJob("desk", files[kind], "lora", set=settings), TRAINERS[kind]
    on_day(26, monkeypatch)
    whole = trainer(job, base=dated_base(), workspace=Workspace(tmp_path / "whole"))
    workspace, observer = Workspace(tmp_path / "w"), Notes()
    with pytest.raises(KeyboardInterrupt):
        trainer(job, base=dated_base(), workspace=workspace, observer=Stop())
    (folder,) = workspace.runs.iterdir()
    on_day(27, monkeypatch)
    more = {"base": dated_base(), "workspace": workspace, "observer": observer}
    again = resume_aligned(folder.name, **more) if way == "resume" else trainer(job, **more)
    assert again.record["run"] == folder.name
    assert any("continues with 2026-11-26" in text for text in observer.notes)
    assert again.record["sha256"] == whole.record["sha256"]
    assert {**again.metrics, "seconds": 0} == {**whole.metrics, "seconds": 0}


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward", "ppo"])
def test_rows_that_become_other_tokens_are_refused(
    kind: str,
    files: dict[str, Path],
    make_base: Bases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For another reason than the date."""
    monkeypatch.setattr(
        rewards, "load_function", lambda *_: lambda prompt, answer, row: len(answer)
    )
    settings = {"rank": 2, **ROLLED} if kind == "ppo" else SMALL
    job, trainer = AlignJob("desk", files[kind], "lora", set=settings), TRAINERS[kind]
    workspace, base = Workspace(tmp_path / "w"), make_base()
    with pytest.raises(KeyboardInterrupt):
        trainer(job, base=base, workspace=workspace, observer=Stop())
    base.tokenizer.chat_template = "By order.\n" + base.tokenizer.chat_template
    with pytest.raises(UsageError, match="its rows are tokenized differently") as caught:
        trainer(job, base=base, workspace=workspace)
    assert "--restart" in caught.value.remedy
    (folder,) = workspace.runs.iterdir()
    with pytest.raises(UsageError, match="its rows are tokenized differently"):
        resume_aligned(folder.name, base=base, workspace=workspace)
    trainer(job, base=base, workspace=workspace, restart=True)
