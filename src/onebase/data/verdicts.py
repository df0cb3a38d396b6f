"""What a column says of an answer: a rating, or whether it is good or bad."""

import math
import re
from collections.abc import Callable, Collection, Sequence

from onebase.data.row import Row
from onebase.data.values import Unfit, is_blank, is_empty
from onebase.language import say

RATINGS = ("rating", "score", "reward")
VERDICTS = ("label", "kto_tag", "good", "liked", "vote")
_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")  # a decimal comma
# What a file may write for good and bad.
_GOOD: dict[object, bool] = {
    **dict.fromkeys((True, "1", "1.0", "true", "good", "up", "yes"), True),
    **dict.fromkeys((False, -1, "0", "0.0", "-1", "false", "bad", "down", "no"), False),
}


def rating_of(value: object, column: str) -> float:
    """The number that an answer is rated with. Raises Unfit."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        point = str(value).strip().replace(",", ".")
        hint = (
            say(f" (write {point})", f"（请写成 {point}）") if _COMMA.fullmatch(str(value)) else ""
        )
        raise Unfit(column, say(f"{value!r} is no number", f"{value!r} 不是数字") + hint)
    return number


def verdict_of(value: object, column: str) -> float:
    """1 for a good answer, 0 for a bad one. Raises Unfit."""
    key = value.strip().lower() if isinstance(value, str) else value
    if is_blank(value) or not isinstance(key, str | bool | int | float) or key not in _GOOD:
        raise Unfit(
            column,
            say(f"{value!r} is neither good nor bad", f"{value!r} 既不是好也不是坏"),
        )
    return float(_GOOD[key])


def judging_column(rows: Sequence[Row], columns: Collection[str]) -> tuple[str, str] | None:
    """Of `columns` one that judges the rows' answers, and the command that reads it."""
    for command, names, read in (
        ("align kto", VERDICTS, verdict_of),
        ("align reward", RATINGS, rating_of),
    ):
        for name in names:
            if name in columns and _all_read(rows, name, read):
                return name, command
    return None


def _all_read(rows: Sequence[Row], column: str, read: Callable[[object, str], float]) -> bool:
    """Whether every value of a column is read as a rating, or as a verdict."""
    values = [value for row in rows if not is_empty(value := row.values.get(column))]
    try:
        for value in values:
            read(value, column)
    except Unfit:
        return False
    return bool(values)
