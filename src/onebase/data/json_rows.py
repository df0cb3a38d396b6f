"""Rows of JSON: one object a line, or one array of objects."""

import json
import re
import shlex
from collections.abc import Iterator

from onebase.data.example import BadRow
from onebase.data.json_problem import named
from onebase.data.row import Row
from onebase.data.values import kind_of
from onebase.errors import DataError
from onebase.language import say

_SPACE = re.compile(r"\s*")


class _Objects:
    """Makes the objects of a text, and remembers the keys that one of them has twice."""

    def __init__(self) -> None:
        self.twice: list[str] = []

    def __call__(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice += [key for key in made if keys.count(key) > 1]
        return made


def line_rows(file: str, text: str) -> Iterator[Row | BadRow]:
    """JSON lines: a line that is no JSON object is bad, and one with a key twice in an object; a blank
    one is passed over.
    """
    objects = _Objects()
    decode = json.JSONDecoder(object_pairs_hook=objects).decode
    # Not `splitlines`: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = decode(line)
        except (ValueError, RecursionError) as problem:
            objects.twice.clear()
            reason = named(line, problem)
            if isinstance(problem, json.JSONDecodeError):
                reason = say(f"not JSON: {reason}", f"不是 JSON：{reason}")
            else:
                reason = say(f"not JSON that can be read: {reason}", f"无法读取的 JSON：{reason}")
            yield BadRow(file, number, None, reason)
        else:
            yield _row(file, number, value, objects.twice)


def array_rows(file: str, text: str) -> Iterator[Row | BadRow]:
    """A JSON array of objects, each placed by the line on which it begins.

    Raises `DataError` where the text is no array, is cut off, or is broken: past the first
    syntax error of an array, no row can be told from the next.
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
            raise _broken(file, text, where, named(text, problem)) from problem
        except (ValueError, RecursionError) as problem:
            raise _broken(file, text, at, named(text, problem)) from problem
        yield _row(file, line, value, objects.twice)
        at = _skip(text, at)
    after = _skip(text, at + 1)
    if after < len(text):
        raise _broken(
            file,
            text,
            after,
            say("text after the array's end", "数组结束后还有内容"),
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
            say("this key stands twice in one object", "同一对象中该键出现了两次"),
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
                    f"{file} holds JSON objects one after another, without an array around them.",
                    f"{file} 中的 JSON 对象依次排列，没有写成数组。",
                ),
                say(
                    f"Write one object a line: `jq -c . {shlex.quote(file)} > NEW_FILE.jsonl`.",
                    f"请每行写一个对象：`jq -c . {shlex.quote(file)} > 新文件.jsonl`。",
                ),
            )
        return DataError(
            say(
                f"{file} holds no JSON: {named(text, problem)}.",
                f"{file} 不是 JSON：{named(text, problem)}。",
            ),
            say("Write a JSON array of objects.", "请写成由对象组成的 JSON 数组。"),
        )
    lists = (
        [key for key, held in value.items() if isinstance(held, list)]
        if isinstance(value, dict)
        else []
    )
    where = say(f" (they may be in {lists[0]!r})", f"（可能在 {lists[0]!r} 中）") if lists else ""
    if isinstance(value, dict) and value and all(isinstance(held, dict) for held in value.values()):
        return DataError(
            say(
                f"{file} holds its columns one by one, not an array of rows.",
                f"{file} 按列存放数据，不是由数据行组成的数组。",
            ),
            say(
                "Write one object a line (pandas: `to_json(path, orient='records', lines=True)`).",
                "请每行写一个对象（pandas：`to_json(path, orient='records', lines=True)`）。",
            ),
        )
    kind = "null" if value is None else kind_of(value)
    return DataError(
        say(
            f"{file} holds {kind}, not an array of rows.",
            f"{file} 的内容是{kind}，不是由数据行组成的数组。",
        ),
        say(
            f"Write the rows as one JSON array, or as one object a line{where}.",
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
            say("Fetch or write the file again.", "请重新下载或写出该文件。"),
        )
    return DataError(
        say(f"{file}:{line} is not JSON: {reason}.", f"{file}:{line} 不是 JSON：{reason}。"),
        say(
            "Mend that line; a file of one object a line needs no array.",
            "请修正该行；每行一个对象的文件无需写成数组。",
        ),
    )
