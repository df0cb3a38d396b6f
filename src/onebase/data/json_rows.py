"""Rows from JSON: one object per line, or an array of objects."""

import json
import re
import shlex
from collections.abc import Iterator

from onebase.data.cells import kind_of
from onebase.data.example import BadRow
from onebase.data.json_problem import explained
from onebase.data.row import Row
from onebase.errors import DataError
from onebase.language import say

_SPACE = re.compile(r"\s*")


class _Objects:
    """Builds JSON objects, and records keys that appear twice in one of them."""

    def __init__(self) -> None:
        self.twice: list[str] = []

    def __call__(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        object_ = dict(pairs)
        if len(object_) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice += [key for key in object_ if keys.count(key) > 1]
        return object_


def line_rows(file: str, text: str) -> Iterator[Row | BadRow]:
    """The rows of JSON lines. A line that is not a JSON object, or has a key twice in an object, is a bad
    row; blank lines are ignored.
    """
    objects = _Objects()
    decode = json.JSONDecoder(object_pairs_hook=objects).decode
    # Not `splitlines`: JSON strings may contain U+2028 and similar characters unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = decode(line)
        except (ValueError, RecursionError) as problem:
            objects.twice.clear()
            reason = explained(line, problem)
            if isinstance(problem, json.JSONDecodeError):
                reason = say(f"not JSON: {reason}", f"不是 JSON：{reason}")
            else:
                reason = say(f"unreadable JSON: {reason}", f"无法读取的 JSON：{reason}")
            yield BadRow(file, number, None, reason)
        else:
            yield _row(file, number, value, objects.twice)


def array_rows(file: str, text: str) -> Iterator[Row | BadRow]:
    """The rows of a JSON array of objects, each with the line on which it begins.

    Raises `DataError` if the text is not an array, is cut off, or has a syntax error: after the first
    error in an array, rows can't be told apart.
    """
    at = _skip(text, 0)
    if at == len(text):
        return
    if text[at] != "[":
        raise _no_array(file, text)
    objects = _Objects()
    decoder = json.JSONDecoder(object_pairs_hook=objects)
    at = _skip(text, at + 1)
    line, counted = 1, 0
    first = True
    while text[at : at + 1] != "]":
        if not first:
            if text[at : at + 1] != ",":
                raise _broken(
                    file,
                    text,
                    at,
                    say("expected ',' or ']'", "此处应为 ',' 或 ']'"),
                )
            at = _skip(text, at + 1)
        first = False
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as problem:
            cut_off = problem.msg.startswith("Unterminated string")
            where = len(text) if cut_off else problem.pos
            raise _broken(file, text, where, explained(text, problem)) from problem
        except (ValueError, RecursionError) as problem:
            raise _broken(file, text, at, explained(text, problem)) from problem
        yield _row(file, line, value, objects.twice)
        at = _skip(text, at)
    after = _skip(text, at + 1)
    if after < len(text):
        raise _broken(
            file,
            text,
            after,
            say("text after the end of the array", "数组结束后还有内容"),
        )


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _row(file: str, line: int, value: object, twice: list[str]) -> Row | BadRow:
    if twice:
        key = twice[0]
        twice.clear()
        return BadRow(
            file,
            line,
            key,
            say("this key appears twice in one object", "同一对象中该键出现了两次"),
        )
    if isinstance(value, dict) and value:
        return Row(file, line, value)
    if isinstance(value, dict):
        return BadRow(file, line, None, say("an empty object", "是空对象"))
    if isinstance(value, list):
        kind = say("an array", "数组")
    else:
        kind = say("a string", "字符串") if isinstance(value, str) else json.dumps(value)
    return BadRow(file, line, None, say(f"{kind}, not a JSON object", f"是{kind}，不是 JSON 对象"))


def _no_array(file: str, text: str) -> DataError:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        extra = isinstance(problem, json.JSONDecodeError) and problem.msg.startswith("Extra data")
        if extra and text.lstrip().startswith("{"):
            return DataError(
                say(
                    f"{file} has several JSON objects that are not in an array.",
                    f"{file} 中有多个 JSON 对象，但没有写成数组。",
                ),
                say(
                    f"Write one object per line: `jq -c . {shlex.quote(file)} > NEW_FILE.jsonl`.",
                    f"请每行写一个对象：`jq -c . {shlex.quote(file)} > 新文件.jsonl`。",
                ),
            )
        return DataError(
            say(
                f"{file} is not JSON: {explained(text, problem)}.",
                f"{file} 不是 JSON：{explained(text, problem)}。",
            ),
            say("Write a JSON array of objects.", "请写成由对象组成的 JSON 数组。"),
        )
    lists = (
        [key for key, item in value.items() if isinstance(item, list)]
        if isinstance(value, dict)
        else []
    )
    where = say(f" (they may be in {lists[0]!r})", f"（可能在 {lists[0]!r} 中）") if lists else ""
    if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        return DataError(
            say(
                f"{file} stores its data by column, not as an array of rows.",
                f"{file} 按列存放数据，不是由数据行组成的数组。",
            ),
            say(
                "Write one object per line (pandas: `to_json(path, orient='records', lines=True)`).",
                "请每行写一个对象（pandas：`to_json(path, orient='records', lines=True)`）。",
            ),
        )
    kind = "null" if value is None else kind_of(value)
    return DataError(
        say(
            f"{file} contains {kind}, not an array of rows.",
            f"{file} 的内容是{kind}，不是由数据行组成的数组。",
        ),
        say(
            f"Write the rows as a JSON array, or as one object per line{where}.",
            f"请将数据行写成一个 JSON 数组，或每行一个对象{where}。",
        ),
    )


def _broken(file: str, text: str, at: int, reason: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    if at >= len(text.rstrip()):
        return DataError(
            say(
                f"{file} is cut off: its array does not end by line {line}.",
                f"{file} 不完整：数组到第 {line} 行仍未结束。",
            ),
            say("Download or write the file again.", "请重新下载或写出该文件。"),
        )
    return DataError(
        say(f"{file}:{line} is not JSON: {reason}.", f"{file}:{line} 不是 JSON：{reason}。"),
        say(
            "Correct that line; a file with one object per line needs no array.",
            "请修正该行；每行一个对象的文件无需写成数组。",
        ),
    )
