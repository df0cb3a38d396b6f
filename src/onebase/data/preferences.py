"""Preferences in a file: pairs of answers, rated answers, or answers judged good or bad."""

import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onebase.data.columns import read_options, require_columns, roles_of, shown
from onebase.data.conversion import require_supported
from onebase.data.example import BadRow, Example, Field, Turn
from onebase.data.fields import fields_of
from onebase.data.formats import Format
from onebase.data.question import BEFORE, BENEATH, asked_of, contains, preceded
from onebase.data.row import Row
from onebase.data.rows import read_rows, require_readable
from onebase.data.turns import (
    as_context,
    chat_of,
    holds_turns,
    is_answer,
    require_last,
    turn_of,
    turns_of,
)
from onebase.data.values import Unfit, text_of, value_of
from onebase.data.verdicts import RATINGS, VERDICTS, rating_of, verdict_of
from onebase.errors import DataError
from onebase.language import say

Kind = Literal["pairs", "ratings", "judged"]
# The commands that learn from each kind.
COMMANDS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("align reward", "align dpo"),
    "ratings": ("align reward",),
    "judged": ("align kto",),
}
_ASKED = ("prompt", "question", "instruction", "input")
_ANSWERED = ("completion", "answer", "response", "output")
_BESIDE = {**BEFORE, **BENEATH}
_CHATS = {"messages": ("messages", "conversations")}
_PAIR = {"chosen": ("chosen",), "rejected": ("rejected",)}
# In the order of detection.
FORMATS: tuple[tuple[Kind, Format], ...] = (
    (
        "pairs",
        Format(
            "preference-conversations",
            {"conversations": ("conversations",), **_PAIR},
            beside=BEFORE,
        ),
    ),
    ("pairs", Format("preference-prompt", {"input": _ASKED, **_PAIR}, beside=_BESIDE)),
    ("pairs", Format("preference-messages", _PAIR, beside=BEFORE)),
    ("ratings", Format("rated-chat", {**_CHATS, "rating": RATINGS}, beside=BEFORE)),
    (
        "ratings",
        Format(
            "rated-answer",
            {"input": _ASKED, "output": _ANSWERED, "rating": RATINGS},
            beside=_BESIDE,
        ),
    ),
    ("ratings", Format("rated-text", {"output": ("text",), "rating": RATINGS})),
    ("judged", Format("judged-chat", {**_CHATS, "good": VERDICTS}, beside=BEFORE)),
    (
        "judged",
        Format(
            "judged-answer",
            {"input": _ASKED, "output": _ANSWERED, "good": VERDICTS},
            beside=_BESIDE,
        ),
    ),
)
BARE = "{input}"  # the template of texts that answer nothing
_HH = ("Human:", "Assistant:")


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
    texts that answer nothing. `columns`, `fields` and `options` as in Dataset. `sha256` is over the file's
    bytes.
    """

    path: str
    kind: Kind
    format: str
    columns: dict[str, str]
    fields: tuple[Field, ...]
    rows: tuple[Preference, ...]
    bad: tuple[BadRow, ...]
    sha256: str
    options: str = ""

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
    encoding: str | None = None,
) -> PreferenceSet:
    """Read every row of a file (or Hub data set) of one of the `kinds`; what is wrong with a row
    stands in `.bad`.

    `columns` names the file's column for a role (`{"output": "review", "rating": "stars"}`);
    `encoding` is the one of a text that is not UTF-8.
    Raises UsageError for a role or column that does not exist, and DataError for a file that
    can't be read or holds no such preferences.
    """
    table = read_rows(path, encoding=encoding)
    require_readable(path, table)
    given = roles_of(columns or {}, {role for _, form in FORMATS for role in form.every})
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    require_columns(given, names)
    for kind, form in FORMATS:
        found = form.match(names, given) if set(given) <= form.every else None
        if found is None or kind not in kinds:
            continue
        rows, bad = [], list(table.bad)
        for row in table.rows:
            try:
                rows.append(_preference(row, kind, found))
            except Unfit as unfit:
                bad.append(BadRow(row.file, row.line, unfit.column, unfit.reason))
        ordered = tuple(sorted(bad, key=lambda item: (item.file, item.line)))
        return PreferenceSet(
            path=str(path),
            kind=kind,
            format=form.name,
            columns=found,
            fields=fields_of(table.rows, found),
            rows=tuple(rows),
            bad=ordered,
            sha256=table.sha256,
            options=read_options(given, encoding),
        )
    raise _no_format(path, names, kinds)


def require_good_rows(data: PreferenceSet, *, skip_bad: bool = False) -> None:
    """Raise DataError unless the set can be learned from: with bad rows only if `skip_bad`, and
    with two good ones at least.
    """
    shown = "; ".join(str(row) for row in data.bad[:5])
    if len(data.bad) > 5:
        shown += say(f"; and {len(data.bad) - 5} more", f"；另有 {len(data.bad) - 5} 行")
    if data.bad and not (skip_bad and data.rows):
        raise DataError(
            say(
                f"{data.path} has bad rows: {len(data.bad)}: {shown}.",
                f"{data.path} 有 {len(data.bad)} 行坏数据：{shown}。",
            ),
            _remedy(data),
        )
    if len(data.rows) < 2:
        raise DataError(
            say(
                f"{data.path} has {len(data.rows)} good rows.",
                f"{data.path} 只有 {len(data.rows)} 行可用数据。",
            ),
            say("Add more: some are held out to judge by.", "请增加数据：其中一部分用于评估。"),
        )


def _remedy(data: PreferenceSet) -> str:
    """What to do about bad rows; leaving them out is no way where every row is one."""
    command = f"onebase data check --as preferences {shlex.quote(data.path)}{data.options}"
    if not data.rows:
        return say(
            f"See them all with `{command}` and mend them.", f"请用 `{command}` 查看全部并修正。"
        )
    return say("Mend them, or leave them out with --skip-bad.", "请修正，或用 --skip-bad 跳过。")


def _preference(row: Row, kind: Kind, columns: Mapping[str, str]) -> Preference:
    values = row.values
    require_supported(values)
    question = _question(values, columns)
    if kind == "pairs":
        asked, chosen = _answered(values, columns["chosen"], question)
        also_asked, rejected = _answered(values, columns["rejected"], question)
        if chosen == rejected:
            raise Unfit(
                columns["rejected"],
                say("the same as the chosen answer", "与被选中的回答相同"),
            )
        if asked and also_asked and asked != also_asked:
            raise Unfit(
                columns["rejected"],
                say(
                    "answers another question than the chosen answer",
                    "与被选中的回答所答的问题不同",
                ),
            )
        asked = asked or also_asked or question
        if not asked:
            raise Unfit(columns["chosen"], _no_question(chosen))
        asked = as_context(preceded(values, columns, asked))
        return Preference(asked, (chosen, rejected), 1.0, row.file, row.line)
    column = columns["good" if kind == "judged" else "rating"]
    value = value_of(values, column)
    rating = verdict_of(value, column) if kind == "judged" else rating_of(value, column)
    answer_column = columns["messages" if "messages" in columns else "output"]
    if "messages" in columns and not holds_turns(values.get(answer_column)):
        chat_of(values, answer_column)  # says what it is instead of turns
    asked, answer = _answered(values, answer_column, question)
    asked = asked or question
    if asked:
        asked = as_context(preceded(values, columns, asked))
    return Preference(asked or (Turn("user", ""),), (answer,), rating, row.file, row.line)


def _no_question(answer: str) -> str:
    """Why an answer has no question: the HH pairs write both into one text."""
    if all(name in answer for name in _HH):
        return say(
            "the question and the answers in one text ('Human: … Assistant: …'); write the columns "
            "prompt, chosen and rejected, or each conversation as a list of role and content",
            "提问与回答写在同一段文本中（'Human: … Assistant: …'）；请写成 prompt、chosen、rejected "
            "三列，或写成由 role 与 content 组成的对话列表",
        )
    return say("answers no question", "没有对应的提问")


def _question(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    """What the columns beside the answers ask; empty where only the answers' own turns can say."""
    if "conversations" in columns:
        return as_context(chat_of(values, columns["conversations"], last="user"))
    return asked_of(values, columns) if "input" in columns else ()


def _answered(
    values: Mapping[str, object], column: str, question: tuple[Turn, ...]
) -> tuple[tuple[Turn, ...], str]:
    """The turns before an answer, where its column holds them, and the answer: a text, a turn, or the
    last turn of a list. A list that begins with the answer goes on from the `question`.

    Raises Unfit for a list with the turns of another question.
    """
    value = value_of(values, column)
    if isinstance(value, dict) and holds_turns(value):
        key = "from" if "value" in value else "role"
        turn = turn_of({key: "assistant", **value}, column)
        require_last([turn], column, "assistant")
        return (), turn.content
    if not holds_turns(value):
        return (), text_of(values, column)
    turns = turns_of(value, column, question if is_answer(value) else ())
    require_last(turns, column, "assistant")
    if not turns[-1].learned:
        raise Unfit(column, say("its answer is marked as not to be learned", "其回答标记为不学习"))
    asked = as_context(turns[:-1])
    if asked == tuple(turn for turn in question if turn.role != "system"):
        return question, turns[-1].content
    if question and not contains(asked, question):
        raise Unfit(column, say("answers another question than the row's", "与该行的提问不符"))
    return asked, turns[-1].content


def _no_format(path: str | Path, columns: Sequence[str], kinds: Sequence[Kind]) -> DataError:
    known = "; ".join(str(form) for kind, form in FORMATS if kind in kinds)
    names = {
        "pairs": say("pairs of answers", "回答对"),
        "ratings": say("rated answers", "带评分的回答"),
        "judged": say("answers judged good or bad", "判为好或坏的回答"),
    }
    wanted = say(" or ", "或").join(names[kind] for kind in kinds)
    listed = shown(columns)
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
