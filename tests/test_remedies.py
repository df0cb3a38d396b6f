"""The commands and options in messages: each exists and accepts its arguments.

The messages are read from the source. VALUE stands for every value of an f-string.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from onebase.cli.app import app
from onebase.data.preferences import COMMANDS

SOURCE = Path(__file__).parents[1] / "src" / "onebase"
VALUE = "7"
# The values of f-strings that are part of a command's name.
NAMED = {"command": sorted({command for names in COMMANDS.values() for command in names})}
# Verbs after `onebase` in sentences about the program.
VERBS = {"itself", "can't", "puts", "could", "can", "is", "reads", "has", "was", "or", "classifies"}
FOREIGN = re.compile(r"\b(pip|iconv|jq|python|hf)\b[^`]*")


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string in a module but docstrings, with its line."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in documentation or id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            for text in joined(node):
                yield node.lineno, text
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def joined(node: ast.JoinedStr) -> list[str]:
    """An f-string with its values put in, once for each choice of a command or of the workspace."""
    variants = [""]
    for part in node.values:
        if isinstance(part, ast.Constant):
            values = [str(part.value)]
        else:
            assert isinstance(part, ast.FormattedValue)
            name = ast.unparse(part.value)
            values = NAMED.get(name, []) if variants[0].endswith("onebase ") else []
            if name.endswith("option"):  # Workspace.option
                values = ["", f" --workspace {VALUE}"]
        variants = [text + value for text in variants for value in values or [VALUE]]
    return variants


MESSAGES = [
    (f"{file.relative_to(SOURCE)}:{line}", text)
    for file in sorted(SOURCE.rglob("*.py"))
    for line, text in texts(ast.parse(file.read_text(encoding="utf-8")))
]


COMMAND: Any = typer.main.get_command(app)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def is_placeholder(word: str) -> bool:
    """Whether a word stands for a value of the user, such as FILE or TASK."""
    if word in ("…", "文件") or set(word) == {VALUE}:  # two values may be adjacent
        return True
    return word.isascii() and word.isupper()


def commands_in(text: str) -> Iterator[tuple[Any, list[str]]]:
    """The commands in a message, as Click's objects, with their arguments.

    Between backticks, all words belong to the command; in a sentence, its options with their values and
    placeholders.
    """
    for start in re.finditer(r"(`?)\bonebase (?=\S)", text):
        rest = text[start.end() :]
        words = rest.partition("`")[0].split() if start[1] else re.split(r"[ \n，。；]", rest)
        command, name = COMMAND, ""
        while words and isinstance(command, TyperGroup):
            word = words[0].rstrip(".,;:")
            subcommand = command.get_command(None, word)
            if subcommand is None:
                assert command is COMMAND, f"no command {name} {word}: {text}"
                break
            command, name = subcommand, f"{name} {word}"
            if words.pop(0) != word:
                words = []
        if command is COMMAND:
            known = words[0] in VERBS or words[0].startswith("--") or not words[0].isascii()
            assert known, f"no command {words[0]}: {text}"
            continue
        arguments = words if start[1] else leading_arguments(command, words)
        # --debug belongs to every command.
        yield command, [word for word in arguments if word != "--debug"]


def leading_arguments(command: Any, words: list[str]) -> Iterator[str]:
    """The words after a command that are its arguments; the others continue the sentence."""
    takes_value = False
    for word in words:
        plain = word.rstrip(".,;:")
        if not plain or not (takes_value or plain.startswith("-") or is_placeholder(plain)):
            return
        yield plain
        option = next((item for item in command.params if plain in item.opts), None)
        takes_value = option is not None and not option.is_flag
        if plain != word:
            return


def require_commands(place: str, text: str) -> None:
    """Raise if the command line does not accept a command in a message."""
    for command, words in commands_in(text):
        if words:  # a bare name only mentions the command
            command.make_context(place, shlex.split(" ".join(words)))


@pytest.mark.parametrize(
    ("place", "text"),
    [(place, text) for place, text in MESSAGES if re.search(r"\bonebase \S", text)],
)
def test_a_command_in_a_message_exists_and_accepts_its_arguments(place: str, text: str) -> None:
    require_commands(place, text)


def all_options(command: Any) -> set[str]:
    if isinstance(command, TyperGroup):
        names = command.list_commands(None)
        return set().union(*(all_options(command.get_command(None, name)) for name in names))
    return {name for item in command.params for name in [*item.opts, *item.secondary_opts]}


OPTIONS = {*all_options(COMMAND), "--debug", "--help"}


def test_an_option_in_a_message_exists() -> None:
    sentences = [(place, FOREIGN.sub("", text)) for place, text in MESSAGES if " " in text]
    options = [(place, name) for place, text in sentences for name in OPTION.findall(text)]
    assert len(options) > 150
    assert [(place, name) for place, name in options if name not in OPTIONS] == []


@pytest.mark.parametrize(
    "text",
    [
        "Make one with: onebase key new.",
        "See `onebase data chekc FILE`.",
        "Start `onebase align dpo --task T --prompts F`.",
        "Start over with onebase train --anew.",
        "Continue with `onebase resume --workspace W`.",
        "Use `onebase classify --task T more`.",
    ],
)
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises((AssertionError, typer.exceptions.TyperException)):
        require_commands("test", text)
