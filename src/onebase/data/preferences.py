"""Preferences in a file: pairs of answers, rated answers, or answers judged good or bad."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onebase.data.conversion import (
    CHAT_ROLES,
    SHAREGPT_ROLES,
    Unfit,
    chat_of,
    is_blank,
    text_of,
    value_of,
)
from onebase.data.example import BadRow, Example, Turn
from onebase.data.formats import Format
from onebase.data.row import Row
from onebase.data.rows import read_rows
from onebase.errors import DataError, unknown
from onebase.language import say

Kind = Literal["pairs", "ratings", "judged"]
_ASKED = ("prompt", "question", "instruction", "input")
_ANSWERED = ("completion", "answer", "response", "output")
_RATING = ("rating", "score", "reward")
# In the order of detection.
FORMATS: tuple[tuple[Kind, Format], ...] = (
    (
        "pairs",
        Format(
            "preference-conversations",
            {"conversations": ("conversations",), "chosen": ("chosen",), "rejected": ("rejected",)},
        ),
    ),
    (
        "pairs",
        Format(
            "preference-prompt",
            {"input": _ASKED, "chosen": ("chosen",), "rejected": ("rejected",)},
        ),
    ),
    (
        "pairs",
        Format("preference-messages", {"chosen": ("chosen",), "rejected": ("rejected",)}),
    ),
    (
        "ratings",
        Format("rated-answer", {"input": _ASKED, "output": _ANSWERED, "rating": _RATING}),
    ),
    ("ratings", Format("rated-text", {"output": ("text",), "rating": _RATING})),
    (
        "judged",
        Format(
            "judged-answer",
            {"input": _ASKED, "output": _ANSWERED, "good": ("label", "good", "liked", "vote")},
        ),
    ),
)
BARE = "{input}"  # the template of texts that answer nothing
# What a file may write for good and bad.
_GOOD: dict[object, bool] = {
    **dict.fromkeys((True, "1", "true", "good", "up", "yes"), True),
    **dict.fromkeys((False, -1, "0", "-1", "false", "bad", "down", "no"), False),
}


@dataclass(frozen=True)
class Preference:
    """One row. `asked` is what was answered: turns that end with a user's, an empty one for a bare
    text. A pair has two `answers`, the chosen one first; the other kinds have one, and its `rating`
    (1 for a good and 0 for a bad answer). `line` as in Example.
    """

    asked: tuple[Turn, ...]
    answers: tuple[str, ...]
    rating: float
    file: str
    line: int

    def example(self, answer: int = 0) -> Example:
        """The conversation with one of its answers."""
        turns = (*self.asked, Turn("assistant", self.answers[answer]))
        return Example(turns, self.file, self.line)

    @property
    def key(self) -> object:
        """What must not be both learned from and judged by: the question, or a bare text."""
        return self.asked if self.asked[-1].content else self.answers


@dataclass(frozen=True)
class PreferenceSet:
    """A file of one kind of preferences, its good rows and its bad ones. `bare` says that it holds
    texts that answer nothing. `sha256` is over the file's bytes.
    """

    path: str
    kind: Kind
    format: str
    columns: dict[str, str]
    rows: tuple[Preference, ...]
    bad: tuple[BadRow, ...]
    sha256: str

    @property
    def bare(self) -> bool:
        """Whether its rows are texts alone."""
        return self.format == "rated-text"

    def split(self, fraction: float, seed: int) -> tuple["PreferenceSet", "PreferenceSet"]:
        """What to learn from and what to judge by, each in the file's order; no question in both.
        At least one question is held out, and never all.
        """
        keys = list(dict.fromkeys(row.key for row in self.rows))
        random.Random(seed).shuffle(keys)
        count = min(max(round(fraction * len(keys)), 1 if fraction else 0), len(keys) - 1)
        held = set(keys[:count])
        return (
            replace(self, rows=tuple(row for row in self.rows if row.key not in held)),
            replace(self, rows=tuple(row for row in self.rows if row.key in held), bad=()),
        )


def load_preferences(
    path: str | Path,
    *,
    kinds: Sequence[Kind] = ("pairs", "ratings", "judged"),
    columns: Mapping[str, str] | None = None,
) -> PreferenceSet:
    """Read every row of a file (or Hub data set) of one of the `kinds`; what is wrong with a row
    stands in `.bad`.

    `columns` names the file's column for a role (`{"output": "review", "rating": "stars"}`).
    Raises UsageError for a role or column that does not exist, and DataError for a file that
    can't be read or holds no such preferences.
    """
    table = read_rows(path)
    given = dict(columns or {})
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    roles = {role for _, form in FORMATS for role in form.roles}
    for role, column in given.items():
        if role not in roles:
            raise unknown("column role", "列角色", role, roles)
        if names and column not in names:
            raise unknown("column", "列", column, names)
    for kind, form in FORMATS:
        found = form.match(names, given) if set(given) <= set(form.roles) else None
        if found is None or kind not in kinds:
            continue
        rows, bad = [], list(table.bad)
        for row in table.rows:
            try:
                rows.append(_preference(row, kind, found))
            except Unfit as unfit:
                bad.append(BadRow(row.file, row.line, unfit.column, unfit.reason))
        ordered = tuple(sorted(bad, key=lambda item: (item.file, item.line)))
        return PreferenceSet(str(path), kind, form.name, found, tuple(rows), ordered, table.sha256)
    raise _no_format(path, names, kinds)


def require_good_rows(data: PreferenceSet, *, skip_bad: bool = False) -> None:
    """Raise DataError unless the set can be learned from: with bad rows only if `skip_bad`, and
    with two good ones at least.
    """
    shown = "; ".join(str(row) for row in data.bad[:5])
    if len(data.bad) > 5:
        shown += say(f"; and {len(data.bad) - 5} more", f"；另有 {len(data.bad) - 5} 行")
    if data.bad and not skip_bad:
        raise DataError(
            say(
                f"{data.path} has bad rows: {len(data.bad)}: {shown}.",
                f"{data.path} 有 {len(data.bad)} 行坏数据：{shown}。",
            ),
            say("Mend them, or leave them out with --skip-bad.", "请修正，或用 --skip-bad 跳过。"),
        )
    if len(data.rows) < 2:
        raise DataError(
            say(
                f"{data.path} has {len(data.rows)} good rows.",
                f"{data.path} 只有 {len(data.rows)} 行可用数据。",
            ),
            say("Add more: some are held out to judge by.", "请增加数据：其中一部分用于评估。"),
        )


def _preference(row: Row, kind: Kind, columns: Mapping[str, str]) -> Preference:
    values = row.values
    if kind == "pairs":
        chosen, before = _answer(values, columns["chosen"])
        rejected, _ = _answer(values, columns["rejected"])
        if chosen == rejected:
            raise Unfit(
                columns["rejected"],
                say("the same as the chosen answer", "与被选中的回答相同"),
            )
        asked = _asked(values, columns) or before
        if not asked:
            raise Unfit(columns["chosen"], say("answers no question", "没有对应的提问"))
        return Preference(asked, (chosen, rejected), 1.0, row.file, row.line)
    answer = text_of(values, columns["output"])
    asked = _asked(values, columns) or (Turn("user", ""),)
    column = columns["good" if kind == "judged" else "rating"]
    value = value_of(values, column)
    rating = _judged(value, column) if kind == "judged" else _number(value, column)
    return Preference(asked, (answer,), rating, row.file, row.line)


def _asked(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    if "conversations" in columns:
        column = columns["conversations"]
        return chat_of(values, column, "from", "value", SHAREGPT_ROLES, last="user")
    if "input" not in columns:
        return ()
    column = columns["input"]
    if isinstance(values.get(column), list):
        return chat_of(values, column, "role", "content", CHAT_ROLES, last="user")
    return (Turn("user", text_of(values, column)),)


def _answer(values: Mapping[str, object], column: str) -> tuple[str, tuple[Turn, ...]]:
    """An answer, and the turns before it where the column holds a whole conversation."""
    value = value_of(values, column)
    if isinstance(value, list):
        turns = chat_of(values, column, "role", "content", CHAT_ROLES)
        return turns[-1].content, turns[:-1]
    if isinstance(value, dict):
        key = "value" if "value" in value else "content"
        return text_of({f"{column}.{key}": value.get(key)}, f"{column}.{key}"), ()
    return text_of(values, column), ()


def _number(value: object, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Unfit(column, say(f"{value!r} is no number", f"{value!r} 不是数字"))
    return number


def _judged(value: object, column: str) -> float:
    key = value.strip().lower() if isinstance(value, str) else value
    if is_blank(value) or not isinstance(key, str | bool | int | float) or key not in _GOOD:
        raise Unfit(
            column,
            say(f"{value!r} is neither good nor bad", f"{value!r} 既不是好也不是坏"),
        )
    return float(_GOOD[key])


def _no_format(path: str | Path, columns: Sequence[str], kinds: Sequence[Kind]) -> DataError:
    known = "; ".join(str(form) for kind, form in FORMATS if kind in kinds)
    names = {
        "pairs": say("pairs of answers", "回答对"),
        "ratings": say("rated answers", "带评分的回答"),
        "judged": say("answers judged good or bad", "判为好或坏的回答"),
    }
    wanted = say(" or ", "或").join(names[kind] for kind in kinds)
    listed = ", ".join(columns) or say("none that can be read", "无可读的列")
    return DataError(
        say(
            f"{path} has the columns {listed}: these are not {wanted}.",
            f"{path} 的列为 {listed}：不是{wanted}。",
        ),
        say(
            f"Use columns such as: {known}; or name them with --columns role=column.",
            f"请使用这样的列：{known}；或用 --columns 角色=列 指定。",
        ),
    )
