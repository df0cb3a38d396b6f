"""From a row of a known format to an `Example`, or to a `BadRow` that says what is wrong."""

import math
import re
from collections.abc import Mapping

from onebase.data.example import BadRow, Example, Role, Turn
from onebase.data.row import Row
from onebase.language import say

CHAT_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Unfit(Exception):
    """A value that spoils its row; whoever reads the row makes a BadRow of it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def convert(row: Row, columns: Mapping[str, str]) -> Example | BadRow:
    """The example in a row. `columns` maps the format's roles to the file's columns."""
    try:
        turns = _turns(row.values, columns)
    except Unfit as unfit:
        return BadRow(row.file, row.line, unfit.column, unfit.reason)
    return Example(turns, row.file, row.line)


def _turns(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    if "messages" in columns:
        return chat_of(values, columns["messages"], "role", "content", CHAT_ROLES)
    if "conversations" in columns:
        return chat_of(values, columns["conversations"], "from", "value", SHAREGPT_ROLES)
    if "instruction" in columns:
        asked = text_of(values, columns["instruction"])
        detail = values.get(columns["input"]) if "input" in columns else None
        if detail is not None and not is_blank(detail):
            asked += "\n\n" + checked(detail, columns["input"])
    else:
        asked = text_of(values, columns["input"])
    if "label" in columns:
        answer = _label(values, columns["label"])
    else:
        answer = text_of(values, columns["output"])
    return Turn("user", asked), Turn("assistant", answer)


def value_of(values: Mapping[str, object], column: str) -> object:
    """What a column holds. Raises Unfit where it holds nothing."""
    if column not in values:
        raise Unfit(column, say("missing", "缺失"))
    value = values[column]
    # NaN is how pandas writes a missing value into JSON and Parquet.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unfit(column, say("null", "为 null"))
    return value


def text_of(values: Mapping[str, object], column: str) -> str:
    """The text in a column. Raises Unfit."""
    return checked(value_of(values, column), column)


def _label(values: Mapping[str, object], column: str) -> str:
    value = value_of(values, column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return checked(value, column).strip()


def checked(value: object, column: str) -> str:
    """`value` if it is text that a tokenizer can take and a model can learn from."""
    if not isinstance(value, str):
        kind = _kind(value)
        raise Unfit(column, say(f"{kind}, expected text", f"是{kind}，应为文本"))
    if is_blank(value):
        raise Unfit(column, say("empty", "为空"))
    if "\0" in value:
        raise Unfit(column, say("holds a NUL character", "含有 NUL 字符"))
    if _SURROGATE.search(value):
        raise Unfit(
            column, say("half a character (a lone surrogate)", "含有不完整的字符（孤立的代理项）")
        )
    return value


def is_blank(value: object) -> bool:
    """Whether a value is a text of nothing but space."""
    return isinstance(value, str) and not value.strip()


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return say("true or false", "布尔值")
    if isinstance(value, int | float):
        return say("a number", "数字")
    if isinstance(value, list):
        return say("a list", "列表")
    return say("an object", "对象") if isinstance(value, dict) else type(value).__name__


def chat_of(
    values: Mapping[str, object],
    column: str,
    role_key: str,
    content_key: str,
    roles: Mapping[str, Role],
    *,
    last: Role = "assistant",
) -> tuple[Turn, ...]:
    """The conversation in a column, which ends with a turn of `last`. Raises Unfit."""
    items = value_of(values, column)
    if not isinstance(items, list):
        kind = say("text", "文本") if isinstance(items, str) else _kind(items)
        raise Unfit(column, say(f"{kind}, expected a list of turns", f"是{kind}，应为对话列表"))
    if not items:
        raise Unfit(column, say("empty", "为空"))
    turns: list[Turn] = []
    for number, item in enumerate(items):
        place = f"{column}[{number}]"
        if not isinstance(item, dict):
            raise Unfit(place, say("not an object", "不是对象"))
        role = f"{place}.{role_key}"
        content = f"{place}.{content_key}"
        fields = {f"{place}.{key}": value for key, value in item.items()}
        name = text_of(fields, role)
        if name not in roles:
            valid = ", ".join(roles)
            raise Unfit(
                role,
                say(f"unknown role {name!r}; valid: {valid}", f"未知角色 {name!r}；可用：{valid}"),
            )
        turns.append(Turn(roles[name], text_of(fields, content)))
        _check_order(turns, place)
    if turns[-1].role != last:
        article = "an" if last == "assistant" else "a"
        wanted = "助手的回答" if last == "assistant" else "用户的消息"
        raise Unfit(
            column,
            say(f"does not end with {article} {last} turn", f"最后一轮不是{wanted}"),
        )
    return tuple(turns)


def _check_order(turns: list[Turn], place: str) -> None:
    """Whether the last of `turns` may stand after those before it."""
    before = [turn.role for turn in turns[:-1]]
    match turns[-1].role:
        case "system" if before:
            raise Unfit(place, say("a system turn that is not first", "系统消息不在首位"))
        case "assistant" if "user" not in before:
            raise Unfit(
                place, say("an assistant turn before any user turn", "助手的回答之前没有用户消息")
            )
        case "assistant" if before[-1] == "assistant":
            raise Unfit(place, say("two assistant turns in a row", "连续两轮都是助手的回答"))
