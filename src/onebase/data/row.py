"""One row of a file, not yet understood."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The values of a row by column, and the line (or the row number) where it stands."""

    file: str
    line: int
    values: dict[str, object]
