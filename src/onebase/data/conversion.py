"""Converting a row of a known format to an `Example`, or to a `BadRow` with the reason."""

from collections.abc import Mapping

from onebase.data.cells import InvalidValue, checked, text_of, value_of
from onebase.data.example import BadRow, Example, Turn
from onebase.data.question import question_of, with_history
from onebase.data.row import Row
from onebase.data.turns import (
    CALLS,
    chat_of,
    holds_turns,
    is_answer,
    mask_of,
    require_last,
    turns_of,
    unsupported,
    up_to_last_in_loss,
)
from onebase.language import say


def convert(row: Row, columns: Mapping[str, str]) -> Example | BadRow:
    """The example in a row. `columns` maps the format's roles to the file's columns."""
    try:
        require_supported(row.values)
        turns = _turns(row.values, columns)
        if "mask" in columns:
            _require_in_loss(row.values, columns["mask"])
    except InvalidValue as invalid:
        return BadRow(row.file, row.line, invalid.column, invalid.reason)
    return Example(turns, row.file, row.line)


def require_supported(values: Mapping[str, object]) -> None:
    """Raise InvalidValue for a row with a column that can't be ignored: images, tool calls."""
    for name, value in values.items():
        # Nearly every value is text, which is only refused for tool calls.
        if (not isinstance(value, str) or name in CALLS) and (reason := unsupported(name, value)):
            raise InvalidValue(name, reason)


def _require_in_loss(values: Mapping[str, object], column: str) -> None:
    mark = mask_of(values.get(column))
    if mark is None:
        raise InvalidValue(column, say("neither 0 nor 1", "既不是 0 也不是 1"))
    if not mark:
        raise InvalidValue(column, say("masks the row from the loss", "标记该行不计入损失"))


def _turns(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    for role in ("messages", "conversations"):
        if role in columns:
            if "prompt" in columns and is_answer(values.get(columns[role])):
                return _answer_to_prompt(values, columns, columns[role])
            return with_history(values, columns, chat_of(values, columns[role]))
    question = with_history(values, columns, question_of(values, columns))
    if "label" in columns:
        return *question, Turn("assistant", label_of(values, columns["label"]))
    column = columns["output"]
    answer = values.get(column)
    if holds_turns(answer):
        items = [answer] if isinstance(answer, dict) else answer
        turns = turns_of(items, column, question)
        require_last(turns, column, "assistant")
        return tuple(up_to_last_in_loss(turns, column))
    return *question, Turn("assistant", text_of(values, column))


def _answer_to_prompt(
    values: Mapping[str, object], columns: Mapping[str, str], column: str
) -> tuple[Turn, ...]:
    """A conversation that begins with the answer to the prompt in another column."""
    rest = {role: name for role, name in columns.items() if role != "prompt"}
    question = question_of(values, {"input": columns["prompt"]})
    turns = turns_of(values[column], column, question)
    require_last(turns, column, "assistant")
    return with_history(values, rest, up_to_last_in_loss(turns, column))


def label_of(values: Mapping[str, object], column: str) -> str:
    """The class label in a column; 1 and 1.0 are the same label. Raises InvalidValue."""
    value = value_of(values, column)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return checked(value, column).strip()
