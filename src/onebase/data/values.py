"""What a column of a row holds: text that can be learned, or the reason why it can't be."""

import math
import re
from collections.abc import Mapping

from onebase.language import say

_TURNS = re.compile(r"\s*\[\s*\{")
_ROLE = re.compile(r"""["'](?:role|from)["']\s*:\s*["'](?:user|assistant|system|human|gpt)["']""")
_CONTENT = re.compile(r"""["'](?:content|value)["']\s*:""")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Unfit(Exception):
    """A value that spoils its row; whoever reads the row makes a BadRow of it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


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
    """The text in a column. Raises Unfit, also for turns that stand there as text, as a table holds
    them: a model would learn to write their JSON.
    """
    text = checked(value_of(values, column), column)
    if _TURNS.match(text) and _ROLE.search(text) and _CONTENT.search(text):
        raise Unfit(column, turns_as_text())
    return text


def turns_as_text() -> str:
    """Why a list of turns can't be read out of a text."""
    return say(
        "a list of turns written as text; write the list itself, in JSON lines or Parquet",
        "是写成文本的对话列表；请在 JSONL 或 Parquet 中直接写列表",
    )


def checked(value: object, column: str) -> str:
    """`value` if it is text that a tokenizer can take and a model can learn from."""
    if not isinstance(value, str):
        kind = kind_of(value)
        raise Unfit(column, say(f"{kind}, expected text", f"是{kind}，应为文本"))
    if is_blank(value):
        raise Unfit(column, say("empty", "为空"))
    if "\0" in value:
        raise Unfit(column, say("holds a NUL character", "含有 NUL 字符"))
    if holds_surrogate(value):
        raise Unfit(
            column, say("half a character (a lone surrogate)", "含有不完整的字符（孤立的代理项）")
        )
    return value


def holds_surrogate(text: str) -> bool:
    """Whether a text has half a character, which no tokenizer takes."""
    return _SURROGATE.search(text) is not None


def is_blank(value: object) -> bool:
    """Whether a value is a text of nothing but space."""
    return isinstance(value, str) and not value.strip()


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, NaN, a blank text, an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace()
    if value is None or isinstance(value, list | dict):
        return not value
    return isinstance(value, float) and math.isnan(value)


def kind_of(value: object) -> str:
    """What kind of value it is, in the words of a message."""
    if isinstance(value, bool):
        return say("true or false", "布尔值")
    if isinstance(value, int | float):
        return say("a number", "数字")
    if isinstance(value, list):
        return say("a list", "列表")
    return say("an object", "对象") if isinstance(value, dict) else type(value).__name__
