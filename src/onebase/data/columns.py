"""The columns of a file by role: parsing `--columns`, and printing it in messages."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from onebase.errors import UsageError, unknown
from onebase.language import say

# Other names of roles.
ALIASES = {
    "content": "input",
    "prompt": "input",
    "text": "input",
    "question": "input",
    "summary": "output",
    "completion": "output",
    "answer": "output",
    "category": "label",
    "intent": "label",
}
_ROLES = (
    *ALIASES,
    *("input", "output", "label", "instruction", "messages", "conversations", "chosen", "rejected"),
    *("rating", "good", "system", "history", "detail", "context", "mask"),
)
# Split only at commas before a role, so that a column's name may contain commas.
_SPLIT = re.compile(rf",(?=\s*(?:{'|'.join(_ROLES)})\s*=|\s*$)")
_STRAY = re.compile(r",\s*([\w-]+)\s*=")
_PLAIN = re.compile(r"[\w.-]+")


def columns_of(options: Sequence[str]) -> dict[str, str]:
    """`role=column` options as a mapping; an option may hold several, separated by commas.

    Raises UsageError for another form, and for a role that is given twice.
    """
    column_of: dict[str, str] = {}
    for item in (part for option in options for part in _SPLIT.split(option) if part.strip()):
        role, equals, column = (part.strip() for part in item.partition("="))
        if not (role and equals and column):
            raise UsageError(
                say(
                    f"{item.strip()!r} is not key=value.", f"{item.strip()!r} 不是 key=value 形式。"
                ),
                say(
                    "Write --columns input=a,output=b. Give a name with a comma its own option: "
                    "--columns 'input=a, b' --columns output=c.",
                    "请写成 --columns input=a,output=b；列名含有逗号时，请各用一个选项："
                    "--columns 'input=a, b' --columns output=c。",
                ),
            )
        if role in column_of:
            raise given_twice(role, column)
        column_of[role] = column
    return column_of


def roles_of(columns: Mapping[str, str], valid: Collection[str]) -> dict[str, str]:
    """The columns of `--columns` by role, without aliases. Raises UsageError for a role that is not
    `valid`, and for a role or a column that is given twice.
    """
    given: dict[str, str] = {}
    for name, column in columns.items():
        role = name if name in valid else ALIASES.get(name, name)
        if role not in valid:
            raise unknown("column role", "列角色", name, valid)
        if role in given or column in given.values():
            raise given_twice(role, column)
        given[role] = column
    return given


def require_columns(given: Mapping[str, str], names: Collection[str]) -> None:
    """Raise UsageError for a given column that is not in `names`."""
    for column in given.values():
        if column in names:
            continue
        if stray := _STRAY.search(column):
            raise unknown("column role", "列角色", stray[1], _ROLES)
        raise unknown("column", "列", column, names)


def columns_option(columns: Mapping[str, str]) -> str:
    """`--columns` quoted for a shell."""
    pairs = [f"{role}={column}" for role, column in columns.items()]
    if all(_PLAIN.fullmatch(column) for column in columns.values()):
        return f"--columns {','.join(pairs)}"
    return " ".join(f"--columns {shlex.quote(pair)}" for pair in pairs)


def read_options(columns: Mapping[str, str], encoding: str | None) -> str:
    """The options that a file was read with, each after a space, for a command that reads it again."""
    options = f" {columns_option(columns)}" if columns else ""
    return options + (f" --encoding {shlex.quote(encoding)}" if encoding else "")


def given_twice(role: str, column: str) -> UsageError:
    """The error for a role or a column that `--columns` gives twice."""
    return UsageError(
        say(
            f"--columns gives the role {role!r} or the column {column!r} twice.",
            f"--columns 中角色 {role!r} 或列 {column!r} 出现了两次。",
        ),
        say("Give each role a different column.", "请为每个角色指定不同的列。"),
    )
