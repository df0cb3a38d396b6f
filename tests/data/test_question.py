"""Prompts of rows: system texts, histories and contexts are read in every form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.check import Duplicate, check
from onebase.data.formats import load_dataset
from onebase.data.preferences import load_preferences
from onebase.data.template import Template

Write = Callable[[str, object], Path]
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = {
    "alpaca": {"instruction": "q", "output": "a"},
    "adgen": {"content": "q", "summary": "a"},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "conversational": {"prompt": [U], "completion": [A]},
    "question-answer": {"question": "q", "answer": "a"},
    "classification": {"text": "q", "label": "a"},
    "messages": {"messages": [U, A]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
}


def said(write: Write, row: dict[str, Any]) -> list[tuple[str, str]]:
    dataset = load_dataset(write("a.jsonl", [row]))
    assert not dataset.bad, dataset.bad
    return [(turn.role, turn.content) for turn in dataset.examples[0].turns]


@pytest.mark.parametrize("name", TURNS)
def test_a_system_column_is_the_system_turn(write: Write, name: str) -> None:
    row = TURNS[name] | {"system": "Be brief."}
    assert said(write, row) == [("system", "Be brief."), ("user", "q"), ("assistant", "a")]
    assert said(write, TURNS[name] | {"system": " "})[0] == ("user", "q")


@pytest.mark.parametrize("name", TURNS)
def test_a_history_stands_before_the_question(write: Write, name: str) -> None:
    row = TURNS[name] | {"system": "s", "history": [["q0", "a0"], ["q1", "a1"]]}
    assert [text for _, text in said(write, row)] == ["s", "q0", "a0", "q1", "a1", "q", "a"]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "q", "context": "c", "response": "a"}, "q\n\nc"),
        ({"instruction": "q", "input": "i", "context": "c", "output": "a"}, "q\n\ni\n\nc"),
        ({"question": "q", "context": "c", "answer": "a"}, "q\n\nc"),
        ({"prompt": "q", "input": "i", "completion": "a"}, "q\n\ni"),
        ({"text": "q", "text_pair": "p", "label": "a"}, "q\n\np"),
        ({"prompt": [U], "context": "c", "completion": [A]}, "q\n\nc"),
    ],
)
def test_a_context_stands_under_the_question(write: Write, row: dict[str, Any], asked: str) -> None:
    assert said(write, row) == [("user", asked), ("assistant", "a")]


def test_an_input_in_a_few_rows_is_read(write: Write) -> None:
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(9)]
    dataset = load_dataset(write("a.jsonl", [*rows, rows[0] | {"input": "i"}]))
    assert dataset.examples[-1].input == "q0\n\ni"


@pytest.mark.parametrize(
    ("column", "value"),
    [("system", ("s", "t")), ("history", ([["x", "y"]], [["x", "z"]])), ("context", ("c", "d"))],
)
def test_rows_that_differ_in_a_column_that_is_read_are_no_duplicates(
    write: Write, chatml: Tokenizer, column: str, value: tuple[object, object]
) -> None:
    rows = [{"prompt": "q", "completion": "a", column: item} for item in value]
    assert check(load_dataset(write("a.jsonl", rows)), Template(chatml)).duplicates == ()
    same = [rows[0], rows[0]]
    found = check(load_dataset(write("b.jsonl", same)), Template(chatml))
    assert found.duplicates == (Duplicate(1, 2, conflicting=False),)


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        (
            {"messages": [{"role": "system", "content": "t"}, U, A], "system": "s"},
            "system",
            "differs from the conversation's own system text",
        ),
        ({"input": "q", "output": "a", "system": 5}, "system", "a number, expected text"),
        (
            {"input": "q", "output": "a", "history": "earlier"},
            "history",
            "expected a list of [question, answer] pairs",
        ),
        (
            {"input": "q", "output": "a", "history": [["alone"]]},
            "history[0]",
            "not a pair [question, answer]",
        ),
        ({"input": "q", "output": "a", "history": [["q", None]]}, "history[0]", "null"),
    ],
)
def test_what_can_not_stand_before_a_question_is_named(
    write: Write, row: object, column: str, reason: str
) -> None:
    (bad,) = load_dataset(write("a.jsonl", [row])).bad
    assert bad.column == column
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": "q", "messages": [U, A]}, ["q", "a"]),
        ({"prompt": "earlier", "messages": [U, A]}, ["earlier", "q", "a"]),
        ({"prompt": "q", "messages": [A]}, ["q", "a"]),
        ({"prompt": [{"role": "system", "content": "s"}, U], "messages": [A]}, ["s", "q", "a"]),
    ],
)
def test_a_prompt_beside_a_conversation_is_read(
    write: Write, row: dict[str, Any], texts: list[str]
) -> None:
    assert [text for _, text in said(write, row)] == texts


def test_a_conversational_prompt_is_context_and_the_completion_is_learned(
    write: Write, chatml: Tokenizer
) -> None:
    prompt = [{"role": "system", "content": "s"}, {**U, "content": "q0"}, {**A, "content": "a0"}, U]
    (example,) = load_dataset(write("a.jsonl", [{"prompt": prompt, "completion": [A]}])).examples
    text = Template(chatml).marked(example)
    assert text.count("⟦") == 1
    assert text.endswith("⟦a<|im_end|>⟧")
    assert "a0" in text


PREFERENCES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"instruction": "q"}, {"chosen": "a", "rejected": "b"}),
    ({"prompt": "q"}, {"chosen": "a", "rejected": "b"}),
    ({"prompt": [U]}, {"chosen": [A], "rejected": [{**A, "content": "b"}]}),
    ({"instruction": "q"}, {"output": "a", "label": True}),
    ({"prompt": [U]}, {"completion": [A], "label": False}),
    ({"instruction": "q"}, {"output": "a", "rating": 4}),
]


@pytest.mark.parametrize(("asked", "answered"), PREFERENCES)
def test_preferences_read_what_stands_beside_the_question(
    write: Write, asked: dict[str, Any], answered: dict[str, Any]
) -> None:
    beside = {"input": "i", "system": "s", "history": [["q0", "a0"]]}
    (row,) = load_preferences(write("a.jsonl", [asked | answered | beside])).rows
    assert [turn.content for turn in row.prompt] == ["s", "q0", "a0", "q\n\ni"]
    assert row.answers[0] == "a"


EARLIER = [{"role": "system", "content": "B"}, {**U, "content": "q0"}, {**A, "content": "a0"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": [EARLIER[0], U, A], "history": EARLIER}, "history"),
        ({"prompt": [EARLIER[0], U], "completion": "a", "history": EARLIER}, "history"),
        ({"messages": [EARLIER[0], U, A], "prompt": EARLIER[:2]}, "prompt"),
    ],
)
def test_only_one_system_text_is_taken(write: Write, row: dict[str, Any], column: str) -> None:
    assert said(write, row)[0] == ("system", "B")
    assert [role for role, _ in said(write, row)].count("system") == 1
    other = [{"role": "system", "content": "other"}, *row[column][1:]]
    (bad,) = load_dataset(write("b.jsonl", [row | {column: other}])).bad
    assert (bad.column, bad.reason) == (column, "two system texts")
