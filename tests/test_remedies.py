"""What messages tell a user to type: each command and each option exists, and takes what is written.

The messages are read from the source. A value that is put into one stands as VALUE.
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
# Values that are a part of a command's name.
NAMED = {"command": sorted({command for names in COMMANDS.values() for command in names})}
# What `onebase` does in sentences of its own.
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
    """An f-string with its values put in."""
    found = [""]
    for part in node.values:
        if isinstance(part, ast.Constant):
            found = [text + str(part.value) for text in found]
        else:
            assert isinstance(part, ast.FormattedValue)
            known = NAMED.get(ast.unparse(part.value), []) if found[0].endswith("onebase ") else []
            found = [text + value for text in found for value in known or [VALUE]]
    return found


MESSAGES = [
    (f"{file.relative_to(SOURCE)}:{line}", text)
    for file in sorted(SOURCE.rglob("*.py"))
    for line, text in texts(ast.parse(file.read_text(encoding="utf-8")))
]


COMMAND: Any = typer.main.get_command(app)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def place_holder(word: str) -> bool:
    """Whether a word stands for one of the user's: FILE, TASK, …"""
    stands_in = word in ("…", "文件") or set(word) == {VALUE}  # two values may stand side by side
    return stands_in or (word.isascii() and word.isupper())


def told(text: str) -> Iterator[tuple[Any, list[str]]]:
    """The commands that a message tells to type: each as click knows it, with the words behind it.

    Between backticks all belongs to it; in a sentence, its options with their values and what stands for
    a value.
    """
    for at in re.finditer(r"(`?)\bonebase (?=\S)", text):
        rest = text[at.end() :]
        words = rest.partition("`")[0].split() if at[1] else re.split(r"[ \n，。；]", rest)
        command, name = COMMAND, ""
        while words and isinstance(command, TyperGroup):
            word = words[0].rstrip(".,;:")
            found = command.get_command(None, word)
            if found is None:
                assert command is COMMAND, f"no command {name} {word}: {text}"
                break
            command, name = found, f"{name} {word}"
            if words.pop(0) != word:
                words = []
        if command is COMMAND:
            known = words[0] in VERBS or words[0].startswith("--") or not words[0].isascii()
            assert known, f"no command {words[0]}: {text}"
            continue
        own = words if at[1] else own_words(command, words)
        yield command, [word for word in own if word != "--debug"]  # which goes with every command


def own_words(command: Any, words: list[str]) -> Iterator[str]:
    """Of the words behind a command those that belong to it."""
    takes_value = False
    for word in words:
        plain = word.rstrip(".,;:")
        if not plain or not (takes_value or plain.startswith("-") or place_holder(plain)):
            return
        yield plain
        option = next((item for item in command.params if plain in item.opts), None)
        takes_value = option is not None and not option.is_flag
        if plain != word:
            return


def require_commands(place: str, text: str) -> None:
    """Raise where a message tells to type what the command line does not take."""
    for command, words in told(text):
        if words:  # a bare name is no command to type
            command.make_context(place, shlex.split(" ".join(words)))


@pytest.mark.parametrize(
    ("place", "text"),
    [(place, text) for place, text in MESSAGES if re.search(r"\bonebase \S", text)],
)
def test_a_command_in_a_message_is_one_and_takes_its_words(place: str, text: str) -> None:
    require_commands(place, text)


def all_options(command: Any) -> set[str]:
    if isinstance(command, TyperGroup):
        names = command.list_commands(None)
        return set().union(*(all_options(command.get_command(None, name)) for name in names))
    return {name for item in command.params for name in [*item.opts, *item.secondary_opts]}


OPTIONS = {*all_options(COMMAND), "--debug", "--help"}


def test_an_option_in_a_message_exists() -> None:
    sentences = [(place, FOREIGN.sub("", text)) for place, text in MESSAGES if " " in text]
    found = [(place, name) for place, text in sentences for name in OPTION.findall(text)]
    assert len(found) > 150
    assert [item for item in found if item[1] not in OPTIONS] == []


@pytest.mark.parametrize(
    "text",
    [
        "Make one with: onebase key new.",
        "See `onebase data chekc FILE`.",
        "Start `onebase align dpo --task T --prompts F`.",
        "Begin anew with onebase train --anew.",
        "Go on with `onebase resume --workspace W`.",
        "Use `onebase classify --task T more`.",
    ],
)
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises((AssertionError, typer.exceptions.TyperException)):
        require_commands("test", text)
