"""Answers with a rating or a good-or-bad label are not trained on as good answers."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.data.cells import InvalidValue
from onebase.data.columns import columns_of
from onebase.data.formats import load_dataset
from onebase.data.preferences import load_preferences
from onebase.data.ratings import rating_of
from onebase.errors import DataError

Write = Callable[[str, object], Path]
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
JUDGED: list[dict[str, Any]] = [
    {"prompt": "q", "completion": "a", "label": False},
    {"prompt": [U], "completion": [A], "label": True},
    {"messages": [U, A], "label": False},
    {"instruction": "q", "input": "", "output": "a", "label": 0},
    {"conversations": SHARED, "kto_tag": False},
    {"messages": [U, A], "kto_tag": "true"},
    {"question": "q", "answer": "a", "vote": "down"},
    {"input": "q", "output": "a", "good": "1"},
]
RATED: list[dict[str, Any]] = [
    {"prompt": "q", "completion": "a", "rating": 2},
    {"input": "q", "output": "a", "score": "0.5"},
    {"messages": [U, A], "reward": -1.5},
    {"conversations": SHARED, "score": 3},
]


@pytest.mark.parametrize("row", [*JUDGED, *RATED])
def test_they_are_refused_with_the_command_that_reads_them(
    write: Write, row: dict[str, Any]
) -> None:
    path = write("a b.jsonl", [row] * 3)
    command, kind = (
        ("onebase align reward", "ratings") if row in RATED else ("onebase align kto", "judged")
    )
    with pytest.raises(DataError) as refused:
        load_dataset(path)
    remedy = refused.value.remedy
    method = "" if row in RATED else " --method lora"  # a reward model has its own
    assert f"`{command} --task TASK --data 'a b.jsonl'{method}`" in remedy
    assert load_preferences(path).kind == kind  # the command does read it
    assert len(load_preferences(path).rows) == 3
    # The other remedy works when it is pasted.
    option = remedy[remedy.rindex("`--columns ") + 1 : remedy.rindex("`")]
    words = shlex.split(option)
    columns = columns_of(words[1::2])
    examples = load_dataset(path, columns=columns).examples
    assert [(example.input, example.answer) for example in examples] == [("q", "a")] * 3


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "label": "1"},
        {"text": "t", "label": "bad", "score": 3},
        {"input": "q", "output": "a", "label": "billing"},
        {"messages": [U, A], "rating": "four stars"},
        {"input": "q", "output": "a", "label": None},
    ],
)
def test_other_columns_of_those_names_judge_nothing(write: Write, row: dict[str, Any]) -> None:
    dataset = load_dataset(write("a.jsonl", [row]))
    assert dataset.bad == ()
    (example,) = dataset.examples
    answer = row["label"] if "text" in row else "a"
    assert (example.input, example.answer) == (row.get("text", "q"), answer)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_pairs_without_a_prompt_column_are_pairs_too(write: Write, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"preference pairs.*align dpo"):
        load_dataset(write("a.jsonl", [row]))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("4,5", "'4,5' is not a number (write 4.5)"),
        (" -0,25", "' -0,25' is not a number (write -0.25)"),
        ("+10,0 ", "'+10,0 ' is not a number (write +10.0)"),
        ("1,000,000", "'1,000,000' is not a number"),
        ("a,5", "'a,5' is not a number"),
    ],
)
def test_a_decimal_comma_is_told(value: str, told: str) -> None:
    with pytest.raises(InvalidValue) as unfit:
        rating_of(value, "rating")
    assert unfit.value.reason == told
