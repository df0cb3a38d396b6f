"""Bad rows in messages and reports: in the order of the file, the first few by place and reason."""

from collections.abc import Iterable, Sequence

from onebase.data.example import BadRow
from onebase.errors import DataError
from onebase.language import say

_SHOWN = 5


def in_order(bad: Iterable[BadRow]) -> tuple[BadRow, ...]:
    """Bad rows sorted by file and line."""
    return tuple(sorted(bad, key=lambda row: (row.file, row.line)))


def listed(bad: Sequence[BadRow]) -> str:
    """The first bad rows with their reasons, and how many more there are."""
    more = len(bad) - _SHOWN
    shown = "; ".join(map(str, bad[:_SHOWN]))
    return shown + (say(f"; and {more} more", f"；另有 {more} 行") if more > 0 else "")


def bad_rows_error(path: object, bad: Sequence[BadRow], remedy: str) -> DataError:
    """The error for a file with bad rows."""
    return DataError(
        say(
            f"{path} has bad rows: {len(bad)}: {listed(bad)}.",
            f"{path} 有 {len(bad)} 行坏数据：{listed(bad)}。",
        ),
        remedy,
    )
