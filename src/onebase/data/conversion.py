"""From a row of a known format to an `Example`, or to a `BadRow` that says what is wrong."""

from collections.abc import Mapping

from onebase.data.example import BadRow, Example, Turn
from onebase.data.question import asked_of, preceded
from onebase.data.row import Row
from onebase.data.turns import (
    CALLS,
    chat_of,
    holds_turns,
    is_answer,
    mask_of,
    require_last,
    to_learn,
    turns_of,
    unsupported,
)
from onebase.data.values import Unfit, checked, text_of, value_of
from onebase.language import say


def convert(row: Row, columns: Mapping[str, str]) -> Example | BadRow:
    """The example in a row. `columns` maps the format's roles to the file's columns."""
    try:
        require_supported(row.values)
        turns = _turns(row.values, columns)
        if "mask" in columns:
            _require_learned(row.values, columns["mask"])
    except Unfit as unfit:
        return BadRow(row.file, row.line, unfit.column, unfit.reason)
    return Example(turns, row.file, row.line)


def require_supported(values: Mapping[str, object]) -> None:
    """Raise Unfit for a row with a column that can't be left out: images, tool calls."""
    for name, value in values.items():
        # Nearly every value is text, which is refused for calls alone.
        if (not isinstance(value, str) or name in CALLS) and (reason := unsupported(name, value)):
            raise Unfit(name, reason)


def _require_learned(values: Mapping[str, object], column: str) -> None:
    mark = mask_of(values.get(column))
    if mark is None:
        raise Unfit(column, say("neither 0 nor 1", "既不是 0 也不是 1"))
    if not mark:
        raise Unfit(column, say("marks the row as not to be learned", "标记该行为不学习"))


def _turns(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    for role in ("messages", "conversations"):
        if role in columns:
            if "prompt" in columns and is_answer(values.get(columns[role])):
                return _answer_to_prompt(values, columns, columns[role])
            return preceded(values, columns, chat_of(values, columns[role]))
    asked = preceded(values, columns, asked_of(values, columns))
    if "label" in columns:
        return *asked, Turn("assistant", label_of(values, columns["label"]))
    column = columns["output"]
    answer = values.get(column)
    if holds_turns(answer):
        items = [answer] if isinstance(answer, dict) else answer
        turns = turns_of(items, column, asked)
        require_last(turns, column, "assistant")
        return tuple(to_learn(turns, column))
    return *asked, Turn("assistant", text_of(values, column))


def _answer_to_prompt(
    values: Mapping[str, object], columns: Mapping[str, str], column: str
) -> tuple[Turn, ...]:
    """A conversation that begins with the answer to the prompt beside it."""
    rest = {role: name for role, name in columns.items() if role != "prompt"}
    asked = asked_of(values, {"input": columns["prompt"]})
    turns = turns_of(values[column], column, asked)
    require_last(turns, column, "assistant")
    return preceded(values, rest, to_learn(turns, column))


def label_of(values: Mapping[str, object], column: str) -> str:
    """The class in a column: 1 and 1.0 are the same one. Raises Unfit."""
    value = value_of(values, column)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return checked(value, column).strip()
