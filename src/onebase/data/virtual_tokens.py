"""Marks for virtual tokens in a template: `{v:4}` marks four (P-tuning, Liu et al. 2021).

Before tokenization a text has one placeholder for each, a noncharacter that is removed from inputs.
As token ids they are negative: -1 is the adapter's first placed token, -2 its second.
"""

import re
from collections.abc import Iterator

from onebase.errors import UsageError
from onebase.language import say

PLACEHOLDER = "\ufdd0"
_MARK = re.compile(r"\{v:([^}]*)\}")


def with_placeholders(text: str) -> str:
    """`text` with placeholders for its marks. Raises UsageError for a mark without a valid number."""

    def placeholders(mark: re.Match[str]) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,2}", mark[1].strip()):
            raise UsageError(
                say(f"{mark[0]!r} is not a valid mark.", f"{mark[0]!r} 不是有效的虚拟词元标记。"),
                say(
                    "Write the number of virtual tokens, from 1 to 999: {v:4}.",
                    "请写明虚拟词元的个数（1 到 999）：{v:4}。",
                ),
            )
        return PLACEHOLDER * int(mark[1])

    return _MARK.sub(placeholders, text.replace(PLACEHOLDER, ""))


def without_marks(text: str) -> str:
    """`text` without its marks, for a base without virtual tokens."""
    return _MARK.sub("", text)


def leading(text: str) -> int:
    """The number of placeholders at the beginning of `text`."""
    return len(text) - len(text.lstrip(PLACEHOLDER))


def split_at_placeholders(text: str) -> Iterator[tuple[str, int]]:
    """`text` in pieces: (text between placeholders, number of placeholders after it)."""
    for match in re.finditer(f"([^{PLACEHOLDER}]*)({PLACEHOLDER}*)", text):
        if match[0]:
            yield match[1], len(match[2])


def shown(text: str) -> str:
    """`text` for display, with each placeholder as ⟨v⟩."""
    return text.replace(PLACEHOLDER, "⟨v⟩")
