"""A command's session: its workspace, its language, and how it prints results and errors."""

import io
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onebase.adapters.workspace import Workspace
from onebase.cli.options import SessionFlags
from onebase.errors import OnebaseError, UsageError, error_as_values
from onebase.language import say, set_language

if TYPE_CHECKING:
    from onebase.adapters.store import AdapterStore

_NO_WIDTH = 100_000  # columns


@dataclass(frozen=True)
class Session:
    """The workspace and output format of one command. Results go to stdout, all else to stderr."""

    workspace: Workspace
    json: bool

    @property
    def store(self) -> "AdapterStore":
        """The workspace's adapters."""
        from onebase.adapters.store import AdapterStore  # late: not every command reads adapters

        return AdapterStore(self.workspace)

    def show(self, result: dict[str, Any], *lines: str) -> None:
        """Print a command's result: as JSON, or as the given lines."""
        if self.json:
            print(json_line(result))
            return
        for line in lines:
            print(line)

    def table(
        self, result: dict[str, Any], columns: list[str], rows: list[list[Any]], empty: str = ""
    ) -> None:
        """Print a command's result: as JSON, or as a table, or `empty` if the table has no rows."""
        if self.json or (empty and not rows):
            self.show(result, empty)
            return
        # Late: `--help` and shell completion print no table.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")  # long names are wrapped, not truncated
        for row in rows:
            table.add_row(*("" if cell is None else Text(str(cell)) for cell in row))
        # Only a terminal has a width; a pipe or a file has none.
        Console(width=None if sys.stdout.isatty() else _NO_WIDTH).print(table)


def begin(flags: SessionFlags) -> Session:
    """The session that a command's flags ask for. Raises UsageError for an unknown language."""
    if flags.lang is not None:
        if flags.lang not in ("en", "zh"):
            raise UsageError(
                say(
                    f"--lang {flags.lang!r} is not supported.", f"--lang {flags.lang!r} 不受支持。"
                ),
                say("Use en or zh.", "请使用 en 或 zh。"),
            )
        set_language("zh" if flags.lang == "zh" else "en")
    return Session(Workspace(flags.workspace), flags.as_json)


def json_line(content: dict[str, Any]) -> str:
    """`content` as JSON; characters that stdout can't encode are escaped."""
    line = json.dumps(content, ensure_ascii=False, default=str)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, default=str)
    return line


def replace_unencodable() -> None:
    """Escape characters that stdout or stderr can't encode, and read undecodable bytes of stdin as
    U+FFFD, so that no character makes a command fail.
    """
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def note(text: str) -> None:
    """Print a message on stderr, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def note_all(texts: Iterable[str]) -> None:
    """Print notes on a result."""
    for text in texts:
        note(say(f"Note: {text}", f"注意：{text}"))


def suggestion(command: str) -> str:
    """The line that suggests the next command."""
    return say(f"Try: {command}", f"试试：{command}")


def print_error(error: OnebaseError, *, as_json: bool) -> None:
    """Print an error: one line for the cause, one for the remedy; with `as_json` also as JSON."""
    if as_json:
        print(json_line({"error": error_as_values(error)}))
    note(say("Error: ", "错误：") + " ".join(error.message.split()))
    note(say("Remedy: ", "解决：") + " ".join(error.remedy.split()))
