"""Why a text is no JSON, in words that name the mistake and its remedy."""

import json
import re

from onebase.language import say

_WORD = re.compile(r"\w+")
_LITERALS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}


def named(text: str, problem: Exception) -> str:
    """What is wrong with `text`, which raised `problem` when it was read as JSON."""
    if isinstance(problem, RecursionError):
        return say("nested too deep", "嵌套层数过多")
    if not isinstance(problem, json.JSONDecodeError):
        return str(problem)
    number = problem.pos - text.rfind("\n", 0, problem.pos)
    reason = say(f"{problem.msg} at character {number}", f"第 {number} 个字符处 {problem.msg}")
    mistake = _mistake(text, problem)
    return say(f"{reason} ({mistake})", f"{reason}（{mistake}）") if mistake else reason


def _mistake(text: str, problem: json.JSONDecodeError) -> str | None:
    """The mistake that people make where a reader stumbles so; None for one that is not known."""
    at = problem.pos
    here = text[at:].lstrip()
    if "\ufeff" in text[max(at - 1, 0) : at + 2]:
        return say(
            "a byte order mark: two files were joined; take it out",
            "字节顺序标记：由两个文件拼接而成；请删去该标记",
        )
    if problem.msg.startswith("Extra data"):
        return _extra(here)
    if problem.msg.startswith("Invalid"):
        return _inside_text(problem.msg)
    if here[:1] in ("]", "}") and text[:at].rstrip().endswith(","):
        return say(
            f"a comma before {here[0]!r}: take it out", f"{here[0]!r} 之前多了一个逗号：请删去"
        )
    return _not_a_value(here)


def _not_a_value(here: str) -> str | None:
    """What stands where a value, or a key in quotes, should stand."""
    if here[:1] in ("'", "\u201c", "\u201d", "\u2018", "\u2019"):
        return say(
            'other quotes than ": write the file with json.dumps',
            '引号不是 "：请用 json.dumps 写出文件',
        )
    if here.startswith(("//", "/*", "#")):
        return say("a comment: JSON has none, take it out", "注释：JSON 不支持注释，请删去")
    word = _WORD.match(here)
    if word and word[0] in _LITERALS:
        right = _LITERALS[word[0]]
        return say(f"{word[0]}: JSON writes {right}", f"{word[0]}：在 JSON 中应写成 {right}")
    return None


def _inside_text(message: str) -> str | None:
    """What a text between quotes may not hold."""
    if "escape" in message:
        return say(
            r"a single backslash, as in a Windows path: write it twice, C:\\Users",
            r"单个反斜杠（例如 Windows 路径）：请写两次，如 C:\\Users",
        )
    return say(
        r"a line break or a tab inside a text: write \n or \t",
        r"文本内含有换行或制表符：请写成 \n 或 \t",
    )


def _extra(here: str) -> str | None:
    """What stands behind a value that is whole."""
    if here.startswith(","):
        return say(
            "a comma behind the row: JSON lines have none between rows; take it out",
            "行末多了逗号：JSON 行之间不用逗号，请删去",
        )
    if here.startswith(("{", "[")):
        return say(
            "two rows on one line: put each on a line of its own",
            "同一行中有两条数据：请每行只写一条",
        )
    return None
