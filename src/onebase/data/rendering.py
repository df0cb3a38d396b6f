"""Rows as a template renders them. What it refuses, and what a limit leaves nothing of, are bad rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from onebase.data.example import BadRow, Dataset, Example
from onebase.data.preferences import Preference, PreferenceSet
from onebase.data.template import MAX_TOKENS, Rendered, Template
from onebase.data.values import Unfit
from onebase.errors import DataError, OnebaseError
from onebase.language import say

_Row = TypeVar("_Row", Example, Preference)
_Tokens = TypeVar("_Tokens")


def rendered_examples(dataset: Dataset, template: Template) -> tuple[Dataset, list[Rendered]]:
    """`dataset` with what the template refuses among its bad rows, and its examples as tokens."""
    good, tokens, bad = _rendered(dataset.examples, template.example)
    options = dataset.options + _shown_with(template, bad)
    every = _in_order(dataset.bad, bad)
    return replace(dataset, examples=good, bad=every, options=options), tokens


def rendered_preferences(
    data: PreferenceSet, template: Template, *, alone: bool = False
) -> tuple[PreferenceSet, list[tuple[Rendered, ...]]]:
    """`data` with what the template refuses among its bad rows, and each row's answers as tokens, behind
    one prompt to the token; an answer may stand `alone`. A row is bad, too, of which the limit leaves
    no answer or no prompt, or a pair whose answers it makes the same.
    """

    def answers(row: Preference) -> tuple[Rendered, ...]:
        found = template.answers([row.example(index) for index in range(len(row.answers))])
        _require_answers(row, found, template, alone=alone)
        return found

    good, tokens, bad = _rendered(data.rows, answers)
    options = data.options + _shown_with(template, bad)
    return replace(data, rows=good, bad=_in_order(data.bad, bad), options=options), tokens


def _shown_with(template: Template, bad: Sequence[BadRow]) -> str:
    """The options with which `onebase data check` finds the rows that a template has made bad."""
    if not bad or template.max_tokens == MAX_TOKENS:
        return ""
    return f" --max-tokens {template.max_tokens}"


def without_room(row: Example | Preference, template: Template) -> BadRow:
    """The bad row of one that the limit leaves no answer of."""
    limit = f"max_tokens ({template.max_tokens})"
    reason = say(f"leaves no answer within {limit}", f"在 {limit} 内没有留下回答")
    return BadRow(row.file, row.line, None, reason)


def refused(file: str, line: int, refusal: OnebaseError) -> BadRow:
    """The bad row of a template's refusal, which may begin with the place of its row."""
    reason = refusal.message
    for place in (f"{file}:{line}: ", f"{file}:{line}："):
        reason = reason.removeprefix(place)
    return BadRow(file, line, None, reason.rstrip(".。"))


def _rendered(
    rows: Sequence[_Row], render: Callable[[_Row], _Tokens]
) -> tuple[tuple[_Row, ...], list[_Tokens], list[BadRow]]:
    good: list[_Row] = []
    tokens: list[_Tokens] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            tokens.append(render(row))
        except DataError as refusal:
            bad.append(refused(row.file, row.line, refusal))
        except Unfit as unfit:
            bad.append(BadRow(row.file, row.line, None, unfit.reason))
        else:
            good.append(row)
    return tuple(good), tokens, bad


def _require_answers(
    row: Preference, found: Sequence[Rendered], template: Template, *, alone: bool
) -> None:
    """Raise Unfit where the limit leaves nothing to learn from."""
    limit = f"max_tokens ({template.max_tokens})"
    if any(answer.begin == len(answer.ids) for answer in found):
        raise Unfit("", without_room(row, template).reason)
    if not alone and any(answer.begin == 0 for answer in found):
        raise Unfit("", say(f"leaves no prompt within {limit}", f"在 {limit} 内没有留下提问"))
    if len(found) == 2 and found[0].ids == found[1].ids:
        raise Unfit(
            "",
            say(f"cut to {limit}, both answers are the same", f"截断到 {limit} 后，两个回答相同"),
        )


def _in_order(bad: Sequence[BadRow], more: Sequence[BadRow]) -> tuple[BadRow, ...]:
    return tuple(sorted((*bad, *more), key=lambda row: (row.file, row.line)))
