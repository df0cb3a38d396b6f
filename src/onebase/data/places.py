"""Places for virtual tokens inside a template: `{v:4}` marks four (P-tuning, Liu et al. 2021).

Until it is tokenised, a text holds one noncharacter for each of them, which no input can bring in.
As token ids they are negative: -1 is the adapter's first placed token, -2 its second.
"""

import re
from collections.abc import Iterator

from onebase.errors import UsageError
from onebase.language import say

PLACE = "\ufdd0"
_MARK = re.compile(r"\{v:([^}]*)\}")


def with_places(text: str) -> str:
    """`text` with its marks turned into places. Raises UsageError for a mark without a number."""

    def places(mark: re.Match[str]) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,2}", mark[1].strip()):
            raise UsageError(
                say(f"{mark[0]!r} marks no virtual tokens.", f"{mark[0]!r} 不是虚拟词元标记。"),
                say("Write their number, from 1 to 999: {v:4}.", "请写明数量（1 到 999）：{v:4}。"),
            )
        return PLACE * int(mark[1])

    return _MARK.sub(places, text.replace(PLACE, ""))


def without_marks(text: str) -> str:
    """`text` as a base without virtual tokens reads it."""
    return _MARK.sub("", text)


def leading(text: str) -> int:
    """How many places `text` begins with."""
    return len(text) - len(text.lstrip(PLACE))


def stretches(text: str) -> Iterator[tuple[str, int]]:
    """`text` in pieces: (text between places, how many places follow it)."""
    for found in re.finditer(f"([^{PLACE}]*)({PLACE}*)", text):
        if found[0]:
            yield found[1], len(found[2])


def shown(text: str) -> str:
    """`text` for people: each place as ⟨v⟩."""
    return text.replace(PLACE, "⟨v⟩")
