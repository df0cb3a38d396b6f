"""Answering the held-out rows: the questions as in training, and examples as far as they fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.compare.tiny_comparison import (
    OPTIONS,
    SETTINGS,
    labelled_rows,
    plain_losses,
    written,
)
from tests.conftest import tiny_model

from onebase.compare.answering import Answerer
from onebase.compare.data import ComparisonData, comparison_data
from onebase.engine.engine import Engine
from onebase.engine.rows import TokenRow
from onebase.model.base import Base
from onebase.runs.render_date import local_time
from onebase.training.job import Job


def data_of(job: Job, base: Base) -> ComparisonData:
    return comparison_data(job, OPTIONS, base, local_time())


def answerer_of(base: Base, data: ComparisonData, notes: list[str]) -> Answerer:
    return Answerer(base, data, answer_tokens=4, check=lambda: None, note=notes.append)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The questions that the engine is asked, by tokens."""
    questions: list[tuple[int, ...]] = []
    run, classify = Engine.run, Engine.classify

    def seen_run(self: Engine, requests: Sequence[Any]) -> Any:
        questions.extend(tuple(request.prompt) for request in requests)
        return run(self, requests)

    def seen_classify(self: Engine, task: str, prompts: Any, labels: Any) -> Any:
        questions.extend(map(tuple, prompts))
        return classify(self, task, prompts, labels)

    monkeypatch.setattr(Engine, "run", seen_run)
    monkeypatch.setattr(Engine, "classify", seen_classify)
    return questions


def until_the_answer(row: TokenRow) -> tuple[int, ...]:
    answer = row.loss_mask[::-1].index(False)
    return tuple(row.ids[: len(row.ids) - answer])


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_long_questions_are_cut_as_in_training(
    kind: str, tmp_path: Path, base: Base, asked: list[tuple[int, ...]]
) -> None:
    rows: list[dict[str, Any]] = labelled_rows(8)
    for row in rows:
        row["text"] += " and there is more to be said" * 8
    if kind == "generation":
        rows = [{"input": row["text"], "output": f"it {row['label']}"} for row in rows]
    job = Job("late", written(tmp_path / "a.jsonl", rows), set={**SETTINGS, "max_tokens": 60})
    data = data_of(job, base)
    assert data.kind == kind
    assert all(len(row.ids) == 60 for row in data.rows)
    assert len(data.template.prompt(data.examples[0].input)) > 100
    answerer_of(base, data, []).bare()
    # To score labels, the engine then runs requests of its own.
    assert asked[: len(data.rows)] == [until_the_answer(row) for row in data.rows]


def test_examples_as_many_as_fit(job: Job, base: Base) -> None:
    data = data_of(job, base)
    examples = data.shown_examples(4, 0)
    base.model.config.max_position_embeddings = 4096
    notes: list[str] = []
    answerer = answerer_of(base, data, notes)

    def longest(count: int) -> int:
        """The longest held-out row with so many examples before it."""
        shown = [turn for example in examples[:count] for turn in example]
        return max(
            len(data.template.prompt([*shown, *example.turns[:-1]]))
            + len(data.template.answer_ids(example.answer))
            for example in data.examples
        )

    def loss(count: int) -> list[float]:
        answers = answerer.bare(examples[:count])
        return [outcome.loss for outcome in answers.outcomes]

    few, none = loss(2), loss(0)
    assert notes == []
    base.model.config.max_position_embeddings = longest(2) + 4
    assert loss(4) == pytest.approx(few, abs=1e-5)
    assert notes == [f"base+examples: the context of {base.name} has room for 2 of 4 examples."]
    base.model.config.max_position_embeddings = longest(2) + 3
    assert loss(4) != pytest.approx(few, abs=1e-3)
    assert "room for 1 of 4" in notes[-1]
    base.model.config.max_position_embeddings = longest(1) + 3
    assert loss(4) == pytest.approx(none, abs=1e-5)
    assert "room for 0 of 4" in notes[-1]


@pytest.fixture
def conversations(tmp_path: Path) -> Job:
    """Conversations of two questions, with a system turn."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": f"where is parcel {number}"},
                {"role": "assistant", "content": f"which {number}"},
                {"role": "user", "content": "the blue one"},
                {"role": "assistant", "content": f"on its way {number}"},
            ]
        }
        for number in range(16)
    ]
    return Job("talk", written(tmp_path / "talk.jsonl", rows), set=SETTINGS)


def test_conversations_have_the_same_labels_with_examples(
    conversations: Job, base: Base, asked: list[tuple[int, ...]]
) -> None:
    data = data_of(conversations, base)
    examples = data.shown_examples(2, 0)
    answerer = answerer_of(base, data, [])
    bare, with_examples = answerer.bare(), answerer.bare(examples)
    counts = [row.labels for row in data.rows]
    assert [outcome.labels for outcome in bare.outcomes] == counts
    assert [outcome.labels for outcome in with_examples.outcomes] == counts
    assert asked[: len(data.rows)] == [until_the_answer(row) for row in data.rows]
    # The whole conversation at once, both answers in the loss.
    rows = []
    for example in data.examples:
        system, question, first, second, last = example.turns
        shown = [turn for one in examples for turn in one]
        ids: list[int] = []
        mask: list[bool] = []
        for before, answer in (([question], first), ([question, first, second], last)):
            prompt = data.template.prompt([system, *shown, *before])
            mask += [False] * (len(prompt) - len(ids))
            ids += prompt[len(ids) :]
            tokens = data.template.answer_ids(answer.content)
            ids += tokens
            mask += [True] * len(tokens)
        rows.append(TokenRow(None, tuple(ids), tuple(mask)))
    assert [row.labels for row in rows] == counts
    losses = [outcome.loss for outcome in with_examples.outcomes]
    assert losses == pytest.approx(plain_losses(tiny_model("llama"), rows), abs=1e-5)
