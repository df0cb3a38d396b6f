"""Every column and every field of turns is read or reported as unread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.check import check
from onebase.data.fields import unread
from onebase.data.formats import load_dataset
from onebase.data.preference_check import check_preferences
from onebase.data.preferences import load_preferences
from onebase.data.template import Template

Write = Callable[[str, object], Path]
PAIRED = ["align reward", "align dpo"]
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def uses(write: Write, row: dict[str, Any]) -> dict[str, str]:
    return {field.name: field.use for field in load_dataset(write("a.jsonl", [row])).fields}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"input": "q", "output": "a", "system": "s", "id": 1, "note": ""},
            {
                "input": "input",
                "output": "output",
                "system": "system",
                "id": "unread",
                "note": "empty",
            },
        ),
        (
            {"messages": TALK, "tools": "[]", "instruction": "Be kind."},
            {
                "messages": "messages",
                "messages[].role": "role",
                "messages[].content": "content",
                "tools": "empty",
                "instruction": "unread",
            },
        ),
        (
            {
                "messages": [
                    {**TALK[0], "name": "Ann"},
                    {**TALK[1], "reasoning_content": "because", "weight": 1},
                ]
            },
            {
                "messages": "messages",
                "messages[].role": "role",
                "messages[].content": "content",
                "messages[].name": "unread",
                "messages[].reasoning_content": "unread",
                "messages[].weight": "mask",
            },
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q", "x": 1}]},
                    TALK[1],
                ]
            },
            {
                "messages": "messages",
                "messages[].role": "role",
                "messages[].content": "content",
                "messages[].content[].type": "type",
                "messages[].content[].text": "content",
                "messages[].content[].x": "unread",
            },
        ),
    ],
)
def test_every_column_and_field_is_listed(
    write: Write, row: dict[str, Any], expected: dict[str, str]
) -> None:
    assert uses(write, row) == expected


def not_read(*names: str) -> list[str]:
    """The warning that names these."""
    listed = ", ".join(map(repr, names))
    return [f"Not read: {listed}. Their content is ignored."] if names else []


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"input": "q", "output": "a", "id": 7}, ["id"]),
        ({"text": "q", "label": "a", "category": "b", "topic": "c"}, ["category", "topic"]),
        ({"messages": TALK, "tools": [{"name": "w"}]}, ["tools"]),
        ({"messages": [TALK[0], {**TALK[1], "thinking": "t"}]}, ["messages[].thinking"]),
        ({"input": "q", "output": "a"}, []),
    ],
)
def test_what_is_not_read_is_warned_about_by_name(
    write: Write, chatml: Tokenizer, row: dict[str, Any], names: list[str]
) -> None:
    found = check(load_dataset(write("a.jsonl", [row] * 8)), Template(chatml))
    assert list(found.warnings) == not_read(*names)
    assert [name for name in found.fields if "[" not in name] == list(row)


def test_one_row_is_enough_to_name_a_field(write: Write) -> None:
    rows = [{"input": "q", "output": "a", "x": None}] * 5 + [
        {"input": "q", "output": "a", "x": "y"}
    ]
    assert unread(load_dataset(write("a.jsonl", rows)).fields) == not_read("x")


@pytest.mark.parametrize(
    ("row", "name", "commands"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}, "margin", PAIRED),
        (
            {"prompt": "q", "completion": "a", "label": True, "margin": 2},
            "margin",
            ["align kto"],
        ),
        ({"text": "t", "rating": 3, "margin": 2}, "margin", ["align reward"]),
        (
            {"prompt": "q", "chosen": [{**TALK[1], "margin": 2}], "rejected": "b"},
            "chosen[].margin",
            PAIRED,
        ),
    ],
)
def test_preferences_name_what_they_do_not_read(
    write: Write, chatml: Tokenizer, row: dict[str, Any], name: str, commands: list[str]
) -> None:
    found = check_preferences(load_preferences(write("a.jsonl", [row] * 8)), Template(chatml))
    assert [found.warnings[0]] == not_read(name)
    assert found.read_by == tuple(f"onebase {command}" for command in commands)


@pytest.mark.parametrize("first", ["[]", "{}", "", " "])
@pytest.mark.parametrize("field", ["tool_call_id", "thinking", "metadata"])
def test_a_field_that_first_says_nothing_is_named_where_it_says_something(
    write: Write, first: str, field: str
) -> None:
    rows = [{"messages": [TALK[0], {**TALK[1], field: text}]} for text in (first, first, "text")]
    assert unread(load_dataset(write("a.jsonl", rows)).fields) == not_read(f"messages[].{field}")


@pytest.mark.parametrize("column", ["model.tool_calls", "a.function_call", "x.images"])
def test_a_column_with_a_dot_is_no_field(write: Write, column: str) -> None:
    row = {"input": "q", "output": "a", column: [1]}
    assert uses(write, row)[column] == "unread"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (
            [{"input": "q", "output": "a", "images": held} for held in (["x.png"], "x.png")],
            "images",
        ),
        (
            [
                {"messages": [TALK[0], {**TALK[1], "images": held}]}
                for held in ([{"a": 1}], "x.png")
            ],
            "messages[].images",
        ),
        (
            [
                {"messages": [{"role": "user", "content": [part]}, TALK[1]]}
                for part in ({"type": "image", "x": [1]}, {"type": "text", "text": "q", "x": "y"})
            ],
            "messages[].content[].x",
        ),
    ],
    ids=["columns", "turns", "parts"],
)
def test_a_field_that_one_row_is_refused_for_is_named_for_the_other(
    write: Write, rows: list[dict[str, Any]], name: str, turned: bool
) -> None:
    data = load_dataset(write("a.jsonl", rows[::-1] if turned else rows))
    assert len(data.bad) == len(data.examples) == 1
    assert unread(data.fields) == not_read(name)
