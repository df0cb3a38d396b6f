"""The content of a data file: examples to train on, and bad rows with their reasons."""

from dataclasses import dataclass
from typing import Literal

from onebase.language import say

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. An answer that is not `in_loss` is only context."""

    role: Role
    content: str
    in_loss: bool = True


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant turn to train on.

    `line` counts from 1. In JSONL, CSV and TSV it is the line where the row begins, in a JSON array
    the line where the row's object begins, in Parquet the row's number.
    """

    turns: tuple[Turn, ...]
    file: str
    line: int

    @property
    def input(self) -> str:
        """The text of the last user turn."""
        return next(turn.content for turn in reversed(self.turns) if turn.role == "user")

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return self.turns[-1].content

    @property
    def input_key(self) -> tuple[Turn, ...]:
        """All turns before the answer; examples with the same key are duplicates."""
        return self.turns[:-1]


@dataclass(frozen=True)
class BadRow:
    """A row that can't be trained on: its place and the reason."""

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

    `use` is the role that it is read for, `unread`, `refused`, or `empty` if it is empty in all rows.
    """

    name: str
    use: str


@dataclass(frozen=True)
class Dataset:
    """A data file as read: its good rows as examples, its bad rows with their reasons.

    `columns` maps each role of the format (`input`, `output`, `label`, ...) to the file's column;
    `fields` gives the use of every column and of every field of turns. `labels` are the sorted classes
    of a classification set, empty for other formats. `sha256` is over the bytes of the file, or of all
    its files in order. `options` are the command-line options to read it again.
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
