"""Checking a single value of a row: text that can be trained on, or the reason why it can't."""

import math
import re
from collections.abc import Mapping

from onebase.language import say

_TURNS = re.compile(r"\s*\[\s*\{")
_ROLE = re.compile(r"""["'](?:role|from)["']\s*:\s*["'](?:user|assistant|system|human|gpt)["']""")
_CONTENT = re.compile(r"""["'](?:content|value)["']\s*:""")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class InvalidValue(Exception):
    """A value that makes its row bad; readers turn it into a BadRow."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def value_of(values: Mapping[str, object], column: str) -> object:
    """The value in a column. Raises InvalidValue if it is missing or null."""
    if column not in values:
        raise InvalidValue(column, say("missing", "缺失"))
    value = values[column]
    # pandas writes a missing value into JSON and Parquet as NaN.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InvalidValue(column, say("null", "为 null"))
    return value


def text_of(values: Mapping[str, object], column: str) -> str:
    """The text in a column. Raises InvalidValue for anything else, and for turns written as text, as
    in a table: a model would learn to write their JSON.
    """
    text = checked(value_of(values, column), column)
    if _TURNS.match(text) and _ROLE.search(text) and _CONTENT.search(text):
        raise InvalidValue(column, turns_as_text())
    return text


def turns_as_text() -> str:
    """The reason for refusing a list of turns written as text."""
    return say(
        "a list of turns written as text; write the list itself, in JSON lines or Parquet",
        "是写成文本的对话列表；请在 JSONL 或 Parquet 中直接写列表",
    )


def checked(value: object, column: str) -> str:
    """`value` if it is text that can be tokenized and trained on. Raises InvalidValue."""
    if not isinstance(value, str):
        kind = kind_of(value)
        raise InvalidValue(column, say(f"{kind}, expected text", f"是{kind}，应为文本"))
    if is_blank(value):
        raise InvalidValue(column, say("empty", "为空"))
    if "\0" in value:
        raise InvalidValue(column, say("contains a NUL character", "含有 NUL 字符"))
    if holds_surrogate(value):
        raise InvalidValue(
            column, say("half a character (a lone surrogate)", "含有不完整的字符（孤立的代理项）")
        )
    return value


def holds_surrogate(text: str) -> bool:
    """Whether a text contains a lone surrogate, which no tokenizer accepts."""
    return _SURROGATE.search(text) is not None


def is_blank(value: object) -> bool:
    """Whether a value is a text of white space only."""
    return isinstance(value, str) and not value.strip()


def is_empty(value: object) -> bool:
    """Whether a value is null, NaN, a blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace()
    if value is None or isinstance(value, list | dict):
        return not value
    return isinstance(value, float) and math.isnan(value)


def kind_of(value: object) -> str:
    """The type of a value in the words of a message."""
    if isinstance(value, bool):
        return say("true or false", "布尔值")
    if isinstance(value, int | float):
        return say("a number", "数字")
    if isinstance(value, list):
        return say("a list", "列表")
    return say("an object", "对象") if isinstance(value, dict) else type(value).__name__
