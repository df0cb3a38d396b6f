"""Explaining why a text is not valid JSON: the likely mistake and its remedy."""

import json
import re

from onebase.language import say

_WORD = re.compile(r"\w+")
_LITERALS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}


def explained(text: str, problem: Exception) -> str:
    """The reason why parsing `text` as JSON raised `problem`."""
    if isinstance(problem, RecursionError):
        return say("nested too deeply", "嵌套层数过多")
    if not isinstance(problem, json.JSONDecodeError):
        return str(problem)
    number = problem.pos - text.rfind("\n", 0, problem.pos)
    reason = say(f"{problem.msg} at character {number}", f"第 {number} 个字符处 {problem.msg}")
    mistake = _mistake(text, problem)
    return say(f"{reason} ({mistake})", f"{reason}（{mistake}）") if mistake else reason


def _mistake(text: str, problem: json.JSONDecodeError) -> str | None:
    """The common mistake that causes this error; None if it is none of those known."""
    at = problem.pos
    here = text[at:].lstrip()
    if "\ufeff" in text[max(at - 1, 0) : at + 2]:
        return say(
            "a byte order mark from joined files: remove it",
            "字节顺序标记，由文件拼接产生：请删去该标记",
        )
    if problem.msg.startswith("Extra data"):
        return _mistake_after_value(here)
    if problem.msg.startswith("Invalid"):
        return _mistake_in_string(problem.msg)
    if here[:1] in ("]", "}") and text[:at].rstrip().endswith(","):
        return say(
            f"a comma before {here[0]!r}: remove it", f"{here[0]!r} 之前多了一个逗号：请删去"
        )
    return _mistake_for_value(here)


def _mistake_for_value(here: str) -> str | None:
    """The mistake in place of a value or a quoted key; None if it is none of those known."""
    if here[:1] in ("'", "\u201c", "\u201d", "\u2018", "\u2019"):
        return say(
            'quotes other than ": write the file with json.dumps',
            '引号不是 "：请用 json.dumps 写出文件',
        )
    if here.startswith(("//", "/*", "#")):
        return say(
            "a comment, which JSON does not allow: remove it", "注释：JSON 不支持注释，请删去"
        )
    word = _WORD.match(here)
    if word and word[0] in _LITERALS:
        right = _LITERALS[word[0]]
        return say(f"{word[0]}: write {right} in JSON", f"{word[0]}：在 JSON 中应写成 {right}")
    return None


def _mistake_in_string(message: str) -> str | None:
    """The mistake inside a quoted string."""
    if "escape" in message:
        return say(
            r"a single backslash, as in a Windows path: write it twice, C:\\Users",
            r"单个反斜杠（例如 Windows 路径）：请写两次，如 C:\\Users",
        )
    return say(
        r"a line break or a tab inside a text: write \n or \t",
        r"文本内含有换行或制表符：请写成 \n 或 \t",
    )


def _mistake_after_value(here: str) -> str | None:
    """The mistake after a complete value; None if it is none of those known."""
    if here.startswith(","):
        return say(
            "a comma after the row: JSON lines have no commas between rows, remove it",
            "行末多了逗号：JSON 行之间不用逗号，请删去",
        )
    if here.startswith(("{", "[")):
        return say(
            "two rows on one line: write each on its own line",
            "同一行中有两条数据：请每行只写一条",
        )
    return None
