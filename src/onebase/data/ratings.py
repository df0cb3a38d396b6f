"""Reading the rating of an answer, or its good-or-bad label."""

import math
from collections.abc import Callable, Collection, Sequence

from onebase.data.cells import InvalidValue, is_blank, is_empty
from onebase.data.row import Row
from onebase.language import say

RATINGS = ("rating", "score", "reward")
VERDICTS = ("label", "kto_tag", "good", "liked", "vote")
# Values for good and bad.
_GOOD: dict[object, bool] = {
    **dict.fromkeys((True, "1", "1.0", "true", "good", "up", "yes"), True),
    **dict.fromkeys((False, -1, "0", "0.0", "-1", "false", "bad", "down", "no"), False),
}


def rating_of(value: object, column: str) -> float:
    """The rating of an answer as a finite number. Raises InvalidValue."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidValue(column, say(f"{value!r} is not a number", f"{value!r} 不是数字"))
    return number


def verdict_of(value: object, column: str) -> float:
    """1 for a good answer, 0 for a bad one. Raises InvalidValue."""
    key = value.strip().lower() if isinstance(value, str) else value
    if is_blank(value) or not isinstance(key, str | bool | int | float) or key not in _GOOD:
        raise InvalidValue(
            column,
            say(f"{value!r} is neither good nor bad", f"{value!r} 既不是好也不是坏"),
        )
    return float(_GOOD[key])


def rating_column(rows: Sequence[Row], columns: Collection[str]) -> tuple[str, str] | None:
    """The column that rates or labels the answers, and the command that reads it; None if there is none."""
    for command, names, read in (
        ("align kto", VERDICTS, verdict_of),
        ("align reward", RATINGS, rating_of),
    ):
        for name in names:
            if name in columns and _all_read(rows, name, read):
                return name, command
    return None


def _all_read(rows: Sequence[Row], column: str, read: Callable[[object, str], float]) -> bool:
    """Whether `read` accepts every value of a column that is not empty."""
    values = [value for row in rows if not is_empty(value := row.values.get(column))]
    try:
        for value in values:
            read(value, column)
    except InvalidValue:
        return False
    return bool(values)
