"""One row of a file before its format is known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The values of a row by column, and its line (or row number) in the file."""

    file: str
    line: int
    values: dict[str, object]
