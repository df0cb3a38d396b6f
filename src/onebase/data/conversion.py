"""From a row of a known format to an `Example`, or to a `BadRow` that says what is wrong."""

import math
import re
from collections.abc import Mapping

from onebase.data.example import BadRow, Example, Role, Turn
from onebase.data.row import Row
from onebase.language import say

_CHAT_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Unfit(Exception):
    """A value that spoils its row; never leaves this module."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def convert(row: Row, columns: Mapping[str, str]) -> Example | BadRow:
    """The example in a row. `columns` maps the format's roles to the file's columns."""
    try:
        turns = _turns(row.values, columns)
    except _Unfit as unfit:
        return BadRow(row.file, row.line, unfit.column, unfit.reason)
    return Example(turns, row.file, row.line)


def _turns(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    if "messages" in columns:
        return _chat(values, columns["messages"], "role", "content", _CHAT_ROLES)
    if "conversations" in columns:
        return _chat(values, columns["conversations"], "from", "value", _SHAREGPT_ROLES)
    if "instruction" in columns:
        asked = _text(values, columns["instruction"])
        detail = values.get(columns["input"]) if "input" in columns else None
        if detail is not None and not _is_blank(detail):
            asked += "\n\n" + _checked(detail, columns["input"])
    else:
        asked = _text(values, columns["input"])
    if "label" in columns:
        answer = _label(values, columns["label"])
    else:
        answer = _text(values, columns["output"])
    return Turn("user", asked), Turn("assistant", answer)


def _value(values: Mapping[str, object], column: str) -> object:
    if column not in values:
        raise _Unfit(column, say("missing", "缺失"))
    value = values[column]
    # NaN is how pandas writes a missing value into JSON and Parquet.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise _Unfit(column, say("null", "为 null"))
    return value


def _text(values: Mapping[str, object], column: str) -> str:
    return _checked(_value(values, column), column)


def _label(values: Mapping[str, object], column: str) -> str:
    value = _value(values, column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _checked(value, column).strip()


def _checked(value: object, column: str) -> str:
    """`value` if it is text that a tokenizer can take and a model can learn from."""
    if not isinstance(value, str):
        kind = _kind(value)
        raise _Unfit(column, say(f"{kind}, expected text", f"是{kind}，应为文本"))
    if _is_blank(value):
        raise _Unfit(column, say("empty", "为空"))
    if "\0" in value:
        raise _Unfit(column, say("holds a NUL character", "含有 NUL 字符"))
    if _SURROGATE.search(value):
        raise _Unfit(
            column, say("half a character (a lone surrogate)", "含有不完整的字符（孤立的代理项）")
        )
    return value


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return say("true or false", "布尔值")
    if isinstance(value, int | float):
        return say("a number", "数字")
    if isinstance(value, list):
        return say("a list", "列表")
    return say("an object", "对象") if isinstance(value, dict) else type(value).__name__


def _chat(
    values: Mapping[str, object],
    column: str,
    role_key: str,
    content_key: str,
    roles: Mapping[str, Role],
) -> tuple[Turn, ...]:
    items = _value(values, column)
    if not isinstance(items, list):
        kind = say("text", "文本") if isinstance(items, str) else _kind(items)
        raise _Unfit(column, say(f"{kind}, expected a list of turns", f"是{kind}，应为对话列表"))
    if not items:
        raise _Unfit(column, say("empty", "为空"))
    turns: list[Turn] = []
    for number, item in enumerate(items):
        place = f"{column}[{number}]"
        if not isinstance(item, dict):
            raise _Unfit(place, say("not an object", "不是对象"))
        role = f"{place}.{role_key}"
        content = f"{place}.{content_key}"
        fields = {f"{place}.{key}": value for key, value in item.items()}
        name = _text(fields, role)
        if name not in roles:
            valid = ", ".join(roles)
            raise _Unfit(
                role,
                say(f"unknown role {name!r}; valid: {valid}", f"未知角色 {name!r}；可用：{valid}"),
            )
        turns.append(Turn(roles[name], _text(fields, content)))
        _check_order(turns, place)
    if turns[-1].role != "assistant":
        raise _Unfit(column, say("does not end with an assistant turn", "最后一轮不是助手的回答"))
    return tuple(turns)


def _check_order(turns: list[Turn], place: str) -> None:
    """Whether the last of `turns` may stand after those before it."""
    before = [turn.role for turn in turns[:-1]]
    match turns[-1].role:
        case "system" if before:
            raise _Unfit(place, say("a system turn that is not first", "系统消息不在首位"))
        case "assistant" if "user" not in before:
            raise _Unfit(
                place, say("an assistant turn before any user turn", "助手的回答之前没有用户消息")
            )
        case "assistant" if before[-1] == "assistant":
            raise _Unfit(place, say("two assistant turns in a row", "连续两轮都是助手的回答"))
