"""What a data file holds once it is read: examples to learn from, and the rows that are no good."""

from dataclasses import dataclass
from typing import Literal

from onebase.language import say

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. An answer that is not `learned` is context alone."""

    role: Role
    content: str
    learned: bool = True


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant turn to learn.

    `line` counts from 1. In JSONL, CSV and TSV it is the line on which the row begins, in a JSON
    array the line on which the row's object begins, in Parquet the row's number.
    """

    turns: tuple[Turn, ...]
    file: str
    line: int

    @property
    def input(self) -> str:
        """What the last user turn asks."""
        return next(turn.content for turn in reversed(self.turns) if turn.role == "user")

    @property
    def answer(self) -> str:
        """What the last turn answers."""
        return self.turns[-1].content

    @property
    def input_key(self) -> tuple[Turn, ...]:
        """All that the answer is given to; two examples with one key are duplicates."""
        return self.turns[:-1]


@dataclass(frozen=True)
class BadRow:
    """A row that can't be learned from, where it is and why."""

    file: str
    line: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        if self.column is None:
            return say(
                f"{self.file}:{self.line}: {self.reason}", f"{self.file}:{self.line}：{self.reason}"
            )
        return say(
            f"{self.file}:{self.line}, column {self.column!r}: {self.reason}",
            f"{self.file}:{self.line}，列 {self.column!r}：{self.reason}",
        )


@dataclass(frozen=True)
class Field:
    """A column of a file, or a field of its turns (`messages[].weight`).

    `use` is the role that it is read for; `unread`, or `empty` where no row holds anything there.
    """

    name: str
    use: str


@dataclass(frozen=True)
class Dataset:
    """A data file, read: its good rows as examples, its bad rows with their reasons.

    `columns` maps each role of the format (`input`, `output`, `label`, ...) to the file's column;
    `fields` says of every column, and of every field of turns, what became of it.
    `labels` are the classes of a classification set, sorted; empty for every other format.
    `sha256` is over the file's bytes, or over all of its files' bytes in order. `options` are those of
    the command that reads the file so.
    """

    path: str
    format: str
    columns: dict[str, str]
    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]
    labels: tuple[str, ...]
    sha256: str
    fields: tuple[Field, ...] = ()
    options: str = ""
