"""Reading preferences from a file: pairs of answers, rated answers, or answers labeled good or bad."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onebase.data.bad_rows import bad_rows_error, in_order
from onebase.data.cells import InvalidValue, text_of, value_of
from onebase.data.columns import read_options, require_columns, roles_of, shown
from onebase.data.conversion import require_supported
from onebase.data.example import BadRow, Example, Field, Turn
from onebase.data.fields import fields_of
from onebase.data.formats import Format
from onebase.data.question import BEFORE, BENEATH, contains, question_of, with_history
from onebase.data.ratings import RATINGS, VERDICTS, rating_of, verdict_of
from onebase.data.row import Row
from onebase.data.rows import read_rows, require_readable
from onebase.data.split import held_out_keys
from onebase.data.turns import (
    as_context,
    chat_of,
    holds_turns,
    is_answer,
    require_last,
    turn_of,
    turns_of,
)
from onebase.errors import DataError
from onebase.language import say

Kind = Literal["pairs", "ratings", "judged"]
# The commands that train on each kind.
COMMANDS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("align reward", "align dpo"),
    "ratings": ("align reward",),
    "judged": ("align kto",),
}
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "input")
_ANSWER_COLUMNS = ("completion", "answer", "response", "output")
_BESIDE = {**BEFORE, **BENEATH}
_CHATS = {"messages": ("messages", "conversations")}
_PAIR = {"chosen": ("chosen",), "rejected": ("rejected",)}
_ANSWER = {"input": _PROMPT_COLUMNS, "output": _ANSWER_COLUMNS}
# In the order of detection.
FORMATS: dict[Kind, tuple[Format, ...]] = {
    "pairs": (
        Format(
            "preference-conversations",
            {"conversations": ("conversations",), **_PAIR},
            beside=BEFORE,
        ),
        Format("preference-prompt", {"input": _PROMPT_COLUMNS, **_PAIR}, beside=_BESIDE),
        Format("preference-messages", _PAIR, beside=BEFORE),
    ),
    "ratings": (
        Format("rated-chat", {**_CHATS, "rating": RATINGS}, beside=BEFORE),
        Format("rated-answer", {**_ANSWER, "rating": RATINGS}, beside=_BESIDE),
        Format("rated-text", {"output": ("text",), "rating": RATINGS}),
    ),
    "judged": (
        Format("judged-chat", {**_CHATS, "good": VERDICTS}, beside=BEFORE),
        Format("judged-answer", {**_ANSWER, "good": VERDICTS}, beside=_BESIDE),
    ),
}
BARE = "{input}"  # the template of texts without a prompt
_HH_SPEAKERS = ("Human:", "Assistant:")


@dataclass(frozen=True)
class Preference:
    """One row. `prompt` holds the turns before the answer, the last one the user's; a text without a
    prompt has one empty user turn. A pair has two `answers`, the chosen one first. The other kinds
    have one answer and its `rating` (1 for good and 0 for bad). `line` as in Example.
    """

    prompt: tuple[Turn, ...]
    answers: tuple[str, ...]
    rating: float
    file: str
    line: int

    def example(self, answer: int = 0) -> Example:
        """The conversation with one of its answers."""
        turns = (*self.prompt, Turn("assistant", self.answers[answer]))
        return Example(turns, self.file, self.line)

    @property
    def key(self) -> object:
        """The prompt, or the text if there is none; no key is both in training and held-out data."""
        return self.prompt if self.prompt[-1].content else self.answers


@dataclass(frozen=True)
class PreferenceSet:
    """A file of one kind of preferences, with its good and its bad rows. `columns`, `fields`,
    `sha256` and `options` as in Dataset.
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
        """Whether its rows are texts without prompts."""
        return self.format == "rated-text"

    def split(self, fraction: float, seed: int) -> tuple["PreferenceSet", "PreferenceSet"]:
        """Training rows and held-out rows, each in the file's order; no prompt is in both.

        At least one prompt is held out, and never all; a `fraction` of 0 holds out none.
        """
        held_out = held_out_keys((row.key for row in self.rows), fraction, seed)
        return (
            replace(self, rows=tuple(row for row in self.rows if row.key not in held_out)),
            replace(self, rows=tuple(row for row in self.rows if row.key in held_out), bad=()),
        )


def load_preferences(
    path: str | Path,
    *,
    kinds: Sequence[Kind] = ("pairs", "ratings", "judged"),
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> PreferenceSet:
    """Read every row of a file (or Hub data set) of one of the `kinds`; rows that can't be used are
    in `.bad`.

    `columns` sets the file's column for a role (`{"output": "review", "rating": "stars"}`);
    `encoding` is for text that is not UTF-8. Raises UsageError for a role or column that does not
    exist, and DataError for a file that can't be read or holds no such preferences.
    """
    table = read_rows(path, encoding=encoding)
    require_readable(path, table)
    forms = [(kind, form) for kind in FORMATS for form in FORMATS[kind]]
    given = roles_of(columns or {}, {role for _, form in forms for role in form.all_roles})
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    require_columns(given, names)
    for kind, form in forms:
        column_of = form.match(names, given) if set(given) <= form.all_roles else None
        if column_of is None or kind not in kinds:
            continue
        rows, bad = [], list(table.bad)
        for row in table.rows:
            try:
                rows.append(_preference(row, kind, column_of))
            except InvalidValue as invalid:
                bad.append(BadRow(row.file, row.line, invalid.column, invalid.reason))
        return PreferenceSet(
            path=str(path),
            kind=kind,
            format=form.name,
            columns=column_of,
            fields=fields_of(table.rows, column_of),
            rows=tuple(rows),
            bad=in_order(bad),
            sha256=table.sha256,
            options=read_options(given, encoding),
        )
    raise _no_format(path, names, kinds)


def require_good_rows(data: PreferenceSet, *, skip_bad: bool = False) -> None:
    """Raise DataError for bad rows unless `skip_bad`, and for fewer than two good rows."""
    if data.bad and not (skip_bad and data.rows):
        raise bad_rows_error(data.path, data.bad, _remedy(data))
    if len(data.rows) < 2:
        raise DataError(
            say(
                f"{data.path} has {len(data.rows)} good rows.",
                f"{data.path} 只有 {len(data.rows)} 行可用数据。",
            ),
            say("Add rows: some are held out for evaluation.", "请增加数据：其中一部分留作评估。"),
        )


def _remedy(data: PreferenceSet) -> str:
    """What to do about bad rows; skipping them is no remedy if every row is bad."""
    command = f"onebase data check --as preferences {shlex.quote(data.path)}{data.options}"
    if not data.rows:
        return say(
            f"List them all with `{command}` and correct them.",
            f"请用 `{command}` 查看全部并修正。",
        )
    return say("Correct them, or skip them with --skip-bad.", "请修正，或用 --skip-bad 跳过。")


def _preference(row: Row, kind: Kind, columns: Mapping[str, str]) -> Preference:
    values = row.values
    require_supported(values)
    question = _question(values, columns)
    if kind == "pairs":
        prompt, chosen = _prompt_and_answer(values, columns["chosen"], question)
        other_prompt, rejected = _prompt_and_answer(values, columns["rejected"], question)
        if chosen == rejected:
            raise InvalidValue(
                columns["rejected"],
                say("the same as the chosen answer", "与被选中的回答相同"),
            )
        if prompt and other_prompt and prompt != other_prompt:
            raise InvalidValue(
                columns["rejected"],
                say(
                    "answers another question than the chosen answer",
                    "与被选中的回答所回答的问题不同",
                ),
            )
        prompt = prompt or other_prompt or question
        if not prompt:
            raise InvalidValue(columns["chosen"], _no_question(chosen))
        prompt = as_context(with_history(values, columns, prompt))
        return Preference(prompt, (chosen, rejected), 1.0, row.file, row.line)
    column = columns["good" if kind == "judged" else "rating"]
    value = value_of(values, column)
    rating = verdict_of(value, column) if kind == "judged" else rating_of(value, column)
    answer_column = columns["messages" if "messages" in columns else "output"]
    if "messages" in columns and not holds_turns(values.get(answer_column)):
        chat_of(values, answer_column)  # raises with what it is instead of turns
    prompt, answer = _prompt_and_answer(values, answer_column, question)
    prompt = prompt or question
    if prompt:
        prompt = as_context(with_history(values, columns, prompt))
    return Preference(prompt or (Turn("user", ""),), (answer,), rating, row.file, row.line)


def _no_question(answer: str) -> str:
    """The reason for an answer without a question; pairs like HH-RLHF's have both in one text."""
    if all(name in answer for name in _HH_SPEAKERS):
        return say(
            "the question and the answers are in one text ('Human: … Assistant: …'); write the columns "
            "prompt, chosen and rejected, or each conversation as a list of role and content",
            "提问与回答写在同一段文本中（'Human: … Assistant: …'）；请写成 prompt、chosen、rejected "
            "三列，或写成由 role 与 content 组成的对话列表",
        )
    return say("answers no question", "没有对应的提问")


def _question(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    """The question from columns other than the answers'; empty if only the answers' turns hold it."""
    if "conversations" in columns:
        return as_context(chat_of(values, columns["conversations"], last="user"))
    return question_of(values, columns) if "input" in columns else ()


def _prompt_and_answer(
    values: Mapping[str, object], column: str, question: tuple[Turn, ...]
) -> tuple[tuple[Turn, ...], str]:
    """The turns before an answer, if its column holds them, and the answer: a text, a turn, or the
    last turn of a list. A list that begins with an answer continues the `question`.

    Raises InvalidValue for a list with the turns of another question.
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
    if not turns[-1].in_loss:
        raise InvalidValue(
            column,
            say("its answer is masked from the loss (weight 0)", "其回答不计入损失（权重为 0）"),
        )
    prompt = as_context(turns[:-1])
    if prompt == tuple(turn for turn in question if turn.role != "system"):
        return question, turns[-1].content
    if question and not contains(prompt, question):
        raise InvalidValue(
            column, say("answers another question than the row's", "与该行的提问不符")
        )
    return prompt, turns[-1].content


def _no_format(path: str | Path, columns: Sequence[str], kinds: Sequence[Kind]) -> DataError:
    known = "; ".join(str(form) for kind in FORMATS if kind in kinds for form in FORMATS[kind])
    names = {
        "pairs": say("pairs of answers", "回答对"),
        "ratings": say("rated answers", "带评分的回答"),
        "judged": say("answers labeled good or bad", "标记为好或坏的回答"),
    }
    expected = say(" or ", "或").join(names[kind] for kind in kinds)
    listed = shown(columns)
    return DataError(
        say(
            f"{path} has the columns {listed}, which are not {expected}.",
            f"{path} 的列为 {listed}，不是{expected}。",
        ),
        say(
            f"Use columns such as {known}, or name them with --columns role=column.",
            f"请使用这样的列：{known}，或用 --columns 角色=列 指定。",
        ),
    )
