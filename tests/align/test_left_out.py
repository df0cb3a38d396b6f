"""Rows that nothing can be learned from: refused before the first step, or left out with a record."""

import json
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
from onebase.align.preference_data import load_rows, preference_data
from onebase.align.reward_model import train_reward
from onebase.align.start import start_from
from onebase.errors import DataError
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.runs.run import RunStore

Write = Callable[[str, list[dict[str, Any]]], Path]
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWICE = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
LONG = "no " * 90
SMALL = {"max_tokens": 64, "epochs": 1, "batch_size": 4, "rank": 2}


def ppo(job: AlignJob, **how: Any) -> Any:
    settings = {"steps": 1, "prompts": 2, "max_tokens": 3, "epochs": 1, "rank": 2}
    own = AlignJob(job.task, job.data, job.method, skip_bad=job.skip_bad, set=settings)
    return train_ppo(own, "rewards:length", **how)


# The trainer, a good row, the bad ones with their reasons.
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[tuple[dict[str, Any], str]]]] = {
    "dpo": (
        train_dpo,
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        [
            ({"prompt": TWICE, "chosen": "yes", "rejected": "no"}, "roles must alternate"),
            ({"prompt": "q", "chosen": LONG, "rejected": LONG + "a"}, "both answers are the same"),
            ({"prompt": "q", "chosen": "a"}, "missing"),
        ],
    ),
    "reward": (
        train_reward,
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        [
            ({"prompt": TWICE, "chosen": "yes", "rejected": "no"}, "roles must alternate"),
            ({"prompt": "q", "chosen": LONG, "rejected": LONG + "a"}, "both answers are the same"),
        ],
    ),
    "kto": (
        train_kto,
        {"prompt": "q", "completion": "yes", "label": True},
        [
            ({"prompt": TWICE, "completion": "yes", "label": False}, "roles must alternate"),
            ({"prompt": "q", "completion": "yes", "label": 5}, "neither good nor bad"),
        ],
    ),
    "ppo": (
        ppo,
        {"prompt": "q"},
        [({"prompt": TWICE}, "roles must alternate"), ({"prompt": ""}, "empty")],
    ),
}


@pytest.fixture(autouse=True)
def _reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rewards, "load_function", lambda *_: lambda prompt, answer, row: len(answer)
    )


class Noting(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str, **facts: Any) -> None:
        self.notes.append(text)


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """`row` with a question of its own."""
    made = row | ({"prompt": f"q{number}"} if row["prompt"] == "q" else {})
    return made | ({"label": number % 2 == 0} if row.get("label") is True else {})


@pytest.mark.parametrize("kind", list(KINDS))
def test_bad_rows_are_refused_by_line_or_listed_beside_the_run(
    kind: str, write: Write, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    trainer, good, bad = KINDS[kind]
    rows = [numbered(good, number) for number in range(8)] + [row for row, _ in bad]
    data = write("rows.jsonl", rows)
    base, workspace = make_base(), Workspace(tmp_path / "w")
    base.tokenizer.chat_template = ALTERNATING
    asked = AlignJob("desk", data, "lora", set=SMALL)
    with pytest.raises(DataError) as refused:
        trainer(asked, base=base, workspace=workspace)
    # The template's objections come once the file itself is in order.
    first = bad if kind in ("reward", "ppo") else bad[-1:]
    assert f"rows.jsonl has bad rows: {len(first)}: " in refused.value.message
    for number, (_, reason) in enumerate(first, start=len(rows) + 1 - len(first)):
        assert f"rows.jsonl:{number}" in refused.value.message
        assert reason in refused.value.message
    assert not workspace.root.exists()
    observer = Noting()
    skipping = AlignJob("desk", data, "lora", skip_bad=True, set=SMALL)
    trainer(skipping, base=base, workspace=workspace, observer=observer)
    (made,) = RunStore(workspace).list()
    text = (made.path / "skipped-desk.jsonl").read_text(encoding="utf-8")
    listed = {item["line"]: item["reason"] for item in map(json.loads, text.splitlines())}
    assert list(listed) == list(range(9, 9 + len(bad)))
    for line, (_, reason) in enumerate(bad, start=9):
        assert reason in listed[line]
    assert any(f"Left out: {len(bad)} rows" in note for note in observer.notes)


@pytest.mark.parametrize("kind", list(KINDS))
def test_where_every_row_is_bad_skipping_is_not_offered(
    kind: str, write: Write, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    trainer, good, _ = KINDS[kind]
    data = write("rows.jsonl", [{**good, "prompt": TWICE}] * 4)
    base, workspace = make_base(), Workspace(tmp_path / "w")
    base.tokenizer.chat_template = ALTERNATING
    for skip in (False, True):
        with pytest.raises(DataError) as refused:
            trainer(
                AlignJob("desk", data, "lora", skip_bad=skip, set=SMALL),
                base=base,
                workspace=workspace,
            )
        assert "--skip-bad" not in refused.value.remedy


def test_prompts_that_are_asked_once_are_told(
    write: Write, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{number % 4}", "gold": number} for number in range(6)]
    observer = Noting()
    ppo(
        AlignJob("desk", write("rows.jsonl", rows), "lora"),
        base=make_base(),
        workspace=Workspace(tmp_path / "w"),
        observer=observer,
    )
    assert any("2 rows repeat the prompt of an earlier row" in note for note in observer.notes)


def test_pairs_are_learned_behind_one_prompt(write: Write, make_base: Callable[..., Base]) -> None:
    asked = " ".join(f"word{number}" for number in range(60))
    rows = [
        {"prompt": f"{number} {asked}", "chosen": "good " * (20 + number), "rejected": "bad"}
        for number in range(6)
    ]
    job = AlignJob("desk", write("rows.jsonl", rows), "lora", set=SMALL)
    base = make_base()
    start = start_from(job, base, Workspace(Path("nowhere")), max_tokens=128)
    data = preference_data(job, base, load_rows(job, ("pairs",)), start, 0.2)
    for row in (*data.train, *data.held_out):
        chosen, rejected = row.answers
        assert chosen.prompt == rejected.prompt
        assert len(chosen.ids) == 128
        assert rejected.answer == (*base.tokenizer("bad")["input_ids"], base.tokenizer.eos_token_id)
