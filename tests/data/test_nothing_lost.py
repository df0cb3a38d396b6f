"""Good rows with an extra column or field: it is read, refused with its row, or reported as unread."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.data.example import Dataset
from onebase.data.fields import unread
from onebase.data.formats import load_dataset
from onebase.data.preferences import load_preferences
from onebase.errors import DataError

Write = Callable[[str, object], Path]
MARK = "MARKED"
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ANSWERS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "q", "output": "a"},
    "adgen": {"content": "q", "summary": "a"},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "conversational": {"prompt": [U], "completion": [A]},
    "input-output": {"input": "q", "output": "a"},
    "question-answer": {"question": "q", "answer": "a"},
    "classification": {"text": "q", "label": "a"},
    "messages": {"messages": [U, A]},
    "sharegpt": {"conversations": SHARED},
}
PREFERENCES: dict[str, dict[str, Any]] = {
    "pair": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "pair of chats": {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]},
    "pair of turns": {
        "conversations": SHARED[:1],
        "chosen": SHARED[1],
        "rejected": {"from": "gpt", "value": "b"},
    },
    "judged": {"prompt": "q", "completion": "a", "label": True},
    "judged chat": {"messages": [U, A], "label": True},
    "rated": {"instruction": "q", "output": "a", "rating": 3},
    "rated text": {"text": "t", "rating": 3},
}
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("system", "system_prompt", "context", "input", "text_pair", "topic"), MARK),
    **dict.fromkeys(("instruction", "name", "reasoning_content", "thinking", "image"), MARK),
    **dict.fromkeys(("prompt", "question", "output", "response", "answer", "category"), MARK),
    **{key: [{"name": MARK}] for key in ("tools", "images", "tool_calls", "audios", "documents")},
    **{key: {"name": MARK} for key in ("model.tool_calls", "metadata")},
    "function_call": f"call {MARK}",
    "history": [[MARK, "x"]],
    "messages": [{"role": "user", "content": MARK}, A],
    "conversations": [{"from": "human", "value": MARK}, SHARED[1]],
    "kto_tag": False,
    "score": 2.5,
    "weight": 0,
    "loss": False,
    "train": "maybe " + MARK,
    "chosen": MARK,
    "margin": 3,
}
FIELDS: dict[str, Any] = {
    **dict.fromkeys(("name", "reasoning_content", "thinking", "refusal", "value", "from"), MARK),
    **{key: [{"name": MARK}] for key in ("tool_calls", "images", "audio")},
    **{key: {"name": MARK} for key in ("function_call", "metadata")},
    "weight": 0.5,
    "loss": MARK,
    "train": [MARK],
}


def is_lost(path: Path, names: tuple[str, ...], *, preferences: bool) -> bool:
    """Whether what was added is neither read nor refused nor named; a refusal names it too."""
    try:
        data = load_preferences(path) if preferences else load_dataset(path)
    except DataError as refused:
        return not any(name in f"{refused.message} {refused.remedy}" for name in names)
    if data.bad:
        return not all(any(name in str(row) for name in names) for row in data.bad)
    if any(f"{name}'" in warning for name in names for warning in unread(data.fields)):
        return False
    rows = data.rows if preferences else data.examples
    return MARK not in str(rows)


@pytest.mark.parametrize("form", [*ANSWERS, *PREFERENCES])
def test_each_form_is_read_without_a_word(write: Write, form: str) -> None:
    """So that in the other tests what was added is what is refused or named."""
    path = write("a.jsonl", [ANSWERS.get(form) or PREFERENCES[form]] * 3)
    data = load_dataset(path) if form in ANSWERS else load_preferences(path)
    assert (data.bad, unread(data.fields)) == ((), [])
    assert len(data.examples if isinstance(data, Dataset) else data.rows) == 3


@pytest.mark.parametrize("form", [*ANSWERS, *PREFERENCES])
@pytest.mark.parametrize("column", COLUMNS)
def test_no_column_is_lost(write: Write, form: str, column: str) -> None:
    row = ANSWERS.get(form) or PREFERENCES[form]
    if column in row:
        pytest.skip("it is the form's own")
    # Another column may be read in the place of one of the form's own, which then is named.
    path = write("a.jsonl", [row | {column: COLUMNS[column]}] * 3)
    assert not is_lost(path, (column, *row), preferences=form in PREFERENCES)


def with_field(row: dict[str, Any], name: str, value: Any) -> list[dict[str, Any]]:
    """The row with one more field in each of its turns in turn."""
    found = []
    text = json.dumps(row)
    for column, turns in row.items():
        for at, turn in enumerate(turns if isinstance(turns, list) else [turns]):
            if isinstance(turn, dict) and name not in turn:
                changed = json.loads(text)
                held = changed[column][at] if isinstance(turns, list) else changed[column]
                held[name] = value
                found.append(changed)
    return found


TURNS_OF = {
    "conversational": 2,
    "messages": 2,
    "sharegpt": 2,
    "pair of chats": 4,
    "pair of turns": 3,
    "judged chat": 2,
}


@pytest.mark.parametrize("form", TURNS_OF)
@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_a_turn_is_lost(write: Write, form: str, field: str) -> None:
    row = ANSWERS.get(form) or PREFERENCES[form]
    if field in ("value", "from") and form in ("sharegpt", "pair of turns"):
        pytest.skip("it is the turns' own")
    rows = with_field(row, field, FIELDS[field])
    assert len(rows) == TURNS_OF[form]
    for number, changed in enumerate(rows):
        path = write(f"{number}.jsonl", [changed] * 3)
        assert not is_lost(path, (field,), preferences=form in PREFERENCES), changed
