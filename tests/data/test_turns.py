"""Turns of conversations: both dialects, fields that mask an answer from the loss, content in parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.formats import load_dataset
from onebase.data.template import Template

Write = Callable[[str, object], Path]
CHAT = ("role", "content", "user", "assistant")
SHAREGPT = ("from", "value", "human", "gpt")


def talk(*answers: dict[str, Any], keys: tuple[str, str, str, str] = CHAT) -> list[dict[str, Any]]:
    """Turns q0, a0, q1, a1, …, each answer with the fields given for it."""
    role, content, user, assistant = keys
    turns: list[dict[str, Any]] = []
    for number, more in enumerate(answers):
        turns.append({role: user, content: f"q{number}"})
        turns.append({role: assistant, content: f"a{number}", **more})
    return turns


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("keys", [CHAT, SHAREGPT])
def test_both_dialects_are_read_in_both_columns(
    write: Write, column: str, keys: tuple[str, str, str, str]
) -> None:
    dataset = load_dataset(write("a.jsonl", [{column: talk({}, {}, keys=keys)}]))
    assert not dataset.bad
    assert [turn.content for turn in dataset.examples[0].turns] == ["q0", "a0", "q1", "a1"]


@pytest.mark.parametrize("mark", ["weight", "loss", "train"])
@pytest.mark.parametrize("off", [0, 0.0, False, "0", "false"])
@pytest.mark.parametrize("keys", [CHAT, SHAREGPT])
def test_a_marked_answer_is_context(
    write: Write, chatml: Tokenizer, mark: str, off: object, keys: tuple[str, str, str, str]
) -> None:
    path = write("a.jsonl", [{"messages": talk({mark: off}, {mark: 1}, keys=keys)}])
    for kind in ("chat", "plain"):
        text = Template(chatml, kind=kind).marked(load_dataset(path).examples[0])
        assert "a0" in text
        learned = [part.partition("⟧")[0] for part in text.split("⟦")[1:]]
        assert learned == [{"chat": "a1<|im_end|>", "plain": " a1<|im_end|>"}[kind]]


def test_turns_behind_the_last_learned_answer_are_left_out(write: Write) -> None:
    path = write("a.jsonl", [{"messages": talk({}, {"weight": 0})}])
    assert [turn.content for turn in load_dataset(path).examples[0].turns] == ["q0", "a0"]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": talk({"weight": 0})}, "messages"),
        ({"messages": talk({"loss": False}, {"loss": False})}, "messages"),
        ({"input": "q", "output": "a", "weight": 0}, "weight"),
        ({"messages": talk({}), "loss": False}, "loss"),
        ({"conversations": talk({}), "train": "false"}, "train"),
        ({"messages": talk({"weight": 0.5})}, "messages[1].weight"),
        ({"messages": talk({"train": "maybe"})}, "messages[1].train"),
    ],
)
def test_a_row_with_nothing_to_learn_is_bad(write: Write, row: object, column: str) -> None:
    dataset = load_dataset(write("a.jsonl", [row]))
    assert not dataset.examples
    assert [bad.column for bad in dataset.bad] == [column]


@pytest.mark.parametrize("column", ["weight", "loss"])
def test_a_column_of_other_numbers_is_no_mask(write: Write, column: str) -> None:
    rows = [{"text": "t", "label": "x", column: weight} for weight in (0, 3.5)]
    dataset = load_dataset(write("a.jsonl", rows))
    assert len(dataset.examples) == 2
    assert {field.name: field.use for field in dataset.fields}[column] == "unread"


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "Two parts:"}, {"type": "text", "text": " one."}],
        ["Two parts:", " one."],
        [{"type": "input_text", "text": "Two parts: one."}],
        [{"text": "Two parts: "}, "one."],
    ],
)
def test_parts_of_text_are_joined(write: Write, parts: list[Any]) -> None:
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    assert (
        load_dataset(write("a.jsonl", [{"messages": turns}])).examples[0].input == "Two parts: one."
    )


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_developer_is_the_system(write: Write, role: str) -> None:
    turns = [{"role": role, "content": "s"}, *talk({})]
    (example,) = load_dataset(write("a.jsonl", [{"messages": turns}])).examples
    assert example.turns[0].role == "system"


CALL = [{"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"messages": talk({"tool_calls": CALL})}, "messages[1].tool_calls", "tool calls"),
        (
            {"messages": [talk({})[0], {"role": "assistant", "tool_calls": CALL}]},
            "messages[1].tool_calls",
            "tool calls",
        ),
        (
            {"messages": talk({"function_call": {"name": "w"}})},
            "messages[1].function_call",
            "tool calls",
        ),
        (
            {"messages": [*talk({}), {"role": "tool", "content": "3"}, *talk({})]},
            "messages[2].role",
            "tool calls",
        ),
        (
            {"conversations": [{"from": "observation", "value": "3"}]},
            "conversations[0].from",
            "tool calls",
        ),
        (
            {"messages": [{"role": "user", "content": ["Look:", IMAGE]}, talk({})[1]]},
            "messages[0].content[1]",
            "an image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, talk({})[1]]},
            "messages[0].content[0]",
            "audio",
        ),
        ({"messages": talk({}), "images": ["a.png"]}, "images", "an image"),
        ({"instruction": "q", "output": "a", "videos": ["a.mp4"]}, "videos", "a video"),
        ({"input": "q", "output": "a", "tool_calls": CALL}, "tool_calls", "tool calls"),
        ({"messages": '[{"role": "user"}]'}, "messages", "write the list itself"),
        ({"messages": talk({"value": "b"})}, "messages[1].value", "contradicts"),
        ({"messages": talk({"from": "human"})}, "messages[1].from", "contradicts"),
        (
            {"conversations": [{"from": "gpt", "value": "a", "content": "b"}]},
            "conversations[0].content",
            "contradicts",
        ),
    ],
)
def test_what_text_can_not_hold_is_named(
    write: Write, row: object, column: str, reason: str
) -> None:
    dataset = load_dataset(write("a.jsonl", [row]))
    (bad,) = dataset.bad
    assert bad.column == column
    assert reason in bad.reason


@pytest.mark.parametrize("nothing", [None, [], "", {}])
@pytest.mark.parametrize("field", ["tool_calls", "function_call", "images"])
def test_an_empty_field_refuses_nothing(write: Write, field: str, nothing: object) -> None:
    path = write("a.jsonl", [{"messages": talk({field: nothing}), field: nothing}])
    dataset = load_dataset(path)
    assert dataset.bad == ()
    assert [turn.content for turn in dataset.examples[0].turns] == ["q0", "a0"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("images", [{"path": "x.png"}], "contains an image"),
        ("audio", {"path": "x.wav"}, "contains audio"),
        ("tool_calls", [{"name": "w"}], "tool calls are not supported"),
        ("function_call", "w()", "tool calls are not supported"),
    ],
)
def test_a_part_of_text_with_more_than_text_is_refused(
    write: Write, field: str, value: Any, words: str
) -> None:
    part = {"type": "text", "text": "q", field: value}
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
    (bad,) = load_dataset(write("a.jsonl", [{"messages": turns}])).bad
    assert bad.column == f"messages[0].content[0].{field}"
    assert words in bad.reason
    part[field] = None
    assert load_dataset(write("b.jsonl", [{"messages": turns}])).examples[0].input == "q"
