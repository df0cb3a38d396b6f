"""Prompts for PPO: the questions of a file, with all that stands beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.align.prompts import load_prompts
from onebase.data.template import Template
from onebase.errors import DataError, UsageError
from onebase.model.base import Base


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "p.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def template(make_base: Callable[..., Base]) -> Template:
    return Template(make_base().tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "i"},
        {"prompt": "q", "context": "i"},
        {"question": "q", "input": "i", "answer": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "input": "i"},
    ],
)
def test_what_stands_beside_the_question_is_read(
    template: Template, tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = [row | {"system": f"s{n}", "history": [["q0", "a0"]]} for n in range(3)]
    found = load_prompts(write(tmp_path, *rows), template)
    assert [turn.content for turn in found.prompts[2].turns] == ["s2", "q0", "a0", "q\n\ni"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"role": "user", "content": "q"}]},
        {"prompt": [{"role": "user", "content": "q"}]},
        {"prompt": "q"},
    ],
)
def test_the_answer_of_a_row_of_examples_is_left_out(
    template: Template, tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = [row | {"system": f"s{n}"} for n in range(2)]
    found = load_prompts(write(tmp_path, *rows), template)
    assert [turn.content for turn in found.prompts[1].turns] == ["s1", "q"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "images": ["x.png"]}, "an image"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "tool calls"),
        ({"prompt": "q", "system": 5}, "a number"),
        ({"messages": [{"role": "system", "content": "s"}]}, "does not end with a user turn"),
    ],
)
def test_a_bad_row_is_named(template: Template, tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_prompts(write(tmp_path, row, row), template)


def test_columns_are_named(template: Template, tmp_path: Path) -> None:
    file = write(tmp_path, {"ask": "q", "sys": "s"}, {"ask": "r", "sys": "s"})
    with pytest.raises(DataError, match="ask, sys"):
        load_prompts(file, template)
    found = load_prompts(file, template, columns={"input": "ask", "system": "sys"})
    assert [turn.content for turn in found.prompts[0].turns] == ["s", "q"]
    with pytest.raises(UsageError, match="nowhere"):
        load_prompts(file, template, columns={"input": "nowhere"})
