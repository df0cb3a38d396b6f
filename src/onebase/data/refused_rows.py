"""Rows as a template renders them; rows that it refuses, or that truncation leaves empty, are bad."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from onebase.data.bad_rows import in_order
from onebase.data.cells import InvalidValue
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.preferences import Preference, PreferenceSet
from onebase.data.template import MAX_TOKENS, Rendered, Template
from onebase.errors import DataError, OnebaseError
from onebase.language import say

_Row = TypeVar("_Row", Example, Preference)
_Tokens = TypeVar("_Tokens")


def rendered_examples(dataset: Dataset, template: Template) -> tuple[Dataset, list[Rendered]]:
    """`dataset` with the rows that the template refuses as bad rows, and its examples as tokens."""
    good, tokens, bad = _rendered(dataset.examples, template.example)
    options = dataset.options + _check_options(template, bad)
    all_bad = in_order((*dataset.bad, *bad))
    return replace(dataset, examples=good, bad=all_bad, options=options), tokens


def rendered_preferences(
    data: PreferenceSet, template: Template, *, alone: bool = False
) -> tuple[PreferenceSet, list[tuple[Rendered, ...]]]:
    """`data` with the rows that the template refuses as bad rows, and each row's answers as tokens.

    The answers of a row have the same prompt tokens; with `alone` an answer needs no prompt. A row is
    also bad if truncation leaves no answer or no prompt, or makes the answers of a pair the same.
    """

    def answers(row: Preference) -> tuple[Rendered, ...]:
        rendered = template.answers([row.example(index) for index in range(len(row.answers))])
        _require_answers(row, rendered, template, alone=alone)
        return rendered

    good, tokens, bad = _rendered(data.rows, answers)
    options = data.options + _check_options(template, bad)
    all_bad = in_order((*data.bad, *bad))
    return replace(data, rows=good, bad=all_bad, options=options), tokens


def _check_options(template: Template, bad: Sequence[BadRow]) -> str:
    """The options with which `onebase data check` reports the rows that the template made bad."""
    if not bad or template.max_tokens == MAX_TOKENS:
        return ""
    return f" --max-tokens {template.max_tokens}"


def without_room(row: Example | Preference, template: Template) -> BadRow:
    """The bad row for a row whose answer is truncated away."""
    limit = f"max_tokens ({template.max_tokens})"
    reason = say(f"leaves no answer within {limit}", f"在 {limit} 内没有留下回答")
    return BadRow(row.file, row.line, None, reason)


def refused(file: str, line: int, refusal: OnebaseError) -> BadRow:
    """The bad row for a template's refusal, without the place of the row in its message."""
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
        except InvalidValue as invalid:
            bad.append(BadRow(row.file, row.line, None, invalid.reason))
        else:
            good.append(row)
    return tuple(good), tokens, bad


def _require_answers(
    row: Preference, rendered: Sequence[Rendered], template: Template, *, alone: bool
) -> None:
    """Raise InvalidValue if truncation leaves nothing to train on."""
    limit = f"max_tokens ({template.max_tokens})"
    if any(answer.begin == len(answer.ids) for answer in rendered):
        raise InvalidValue("", without_room(row, template).reason)
    if not alone and any(answer.begin == 0 for answer in rendered):
        raise InvalidValue(
            "", say(f"leaves no prompt within {limit}", f"在 {limit} 内没有留下提问")
        )
    if len(rendered) == 2 and rendered[0].ids == rendered[1].ids:
        raise InvalidValue(
            "",
            say(
                f"truncated to {limit}, both answers are the same",
                f"截断到 {limit} 后，两个回答相同",
            ),
        )
