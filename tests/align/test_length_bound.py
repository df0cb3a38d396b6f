"""Alignment on a base whose rotary embedding changes with the longest text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.adapters.workspace import Workspace
from onebase.align import rewards
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.kto import train_kto
from onebase.align.ppo import train_ppo
from onebase.align.reward_model import train_reward
from onebase.align.scoring import score_answers
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.runs.run import RunStore

Bases = Callable[..., Base]
LONG = "x" * 60


@pytest.fixture(params=["longrope", "dynamic"])
def base(request: pytest.FixtureRequest, length_bound_base: Bases) -> Base:
    return length_bound_base(str(request.param))


def job(data: Path, **settings: Any) -> AlignJob:
    return AlignJob("t", data, "lora", template="{input} ", set=settings)


@pytest.mark.parametrize("learn", [train_dpo, train_kto, train_reward])
def test_a_row_beyond_the_border_is_refused_before_anything_is_written(
    learn: Any, base: Base, write: Callable[..., Path], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "w")
    rows: list[dict[str, Any]] = [
        {"prompt": f"q{at}", "chosen": LONG if at == 3 else "a", "rejected": "b"} for at in range(8)
    ]
    if learn is train_kto:
        rows = [{"prompt": r["prompt"], "completion": r["chosen"], "label": True} for r in rows]
    data = write("rows.jsonl", rows)
    with pytest.raises(UsageError, match="rotary embedding of type"):
        learn(job(data, max_tokens=64), base=base, workspace=workspace)
    assert RunStore(workspace).list() == []
    learn(job(data, max_tokens=40, epochs=1), base=base, workspace=workspace)


def test_prompts_leave_room_for_answers_within_the_border(
    base: Base, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rewards, "load_function", lambda *_: lambda prompt, answer, row: len(answer)
    )
    workspace = Workspace(tmp_path / "w")
    data = write("prompts.jsonl", [{"prompt": "q" * (at + 1)} for at in range(8)])
    sizes: dict[str, Any] = {"steps": 1, "prompts": 2, "value_method": "p-tuning-v2"}
    longest = len(base.tokenizer("q" * 8 + " ")["input_ids"])
    room = 40 - 20 - longest  # the value model has 20 virtual tokens
    with pytest.raises(DataError, match=r"and 20 virtual tokens before it.*\(rope type"):
        train_ppo(job(data, **sizes, max_tokens=room + 1), "m:f", base=base, workspace=workspace)
    assert RunStore(workspace).list() == []
    train_ppo(job(data, **sizes, max_tokens=room), "m:f", base=base, workspace=workspace)


def test_an_answer_beyond_the_border_is_not_scored(
    base: Base, write: Callable[..., Path], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "w")
    rows = [{"prompt": f"q{at}", "chosen": "a", "rejected": "b"} for at in range(8)]
    learning = job(write("rows.jsonl", rows), epochs=1, max_tokens=64)
    train_reward(learning, base=base, workspace=workspace)
    with pytest.raises(UsageError, match="rotary embedding of type"):
        score_answers("t", [("q", "a"), ("q", LONG)], base=base, workspace=workspace)
    assert len(score_answers("t", [("q", "a")], base=base, workspace=workspace)) == 1
