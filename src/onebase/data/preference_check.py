"""The report on a file of preferences before training: bad rows, repeats, token counts, warnings."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from onebase.data.check import (
    Spread,
    control_tokens,
    ends_inside,
    few_rows,
    lost_characters,
    no_end,
)
from onebase.data.example import BadRow, Example
from onebase.data.fields import unread
from onebase.data.preferences import COMMANDS, Kind, Preference, PreferenceSet
from onebase.data.refused_rows import rendered_preferences
from onebase.data.template import Rendered, Template
from onebase.language import say

_MOSTLY = 0.8  # of the pairs; length alone then tells the better answer
_RARE = 0.1  # of the answers


@dataclass(frozen=True)
class Repeat:
    """A line that repeats an earlier one; `contradicting` if it says the opposite: a reversed pair, or
    another rating of the same answer.
    """

    first: int
    second: int
    contradicting: bool


@dataclass(frozen=True)
class Ratings:
    """The lowest, mean and highest rating, and the number of different ratings."""

    lowest: float
    mean: float
    highest: float
    different: int


@dataclass(frozen=True)
class PreferenceReport:
    """The result of `check_preferences`.

    `read_by` lists the commands that train on this kind; `fields` as in CheckReport. `rows` counts good
    and bad rows. `overlap` pairs a line with a line of the held-out file that has the same prompt.
    Token counts are per answer after truncation; `longer_chosen` is the share of pairs whose chosen
    answer has more tokens than the rejected one (None without pairs).
    """

    file: str
    kind: Kind
    read_by: tuple[str, ...]
    format: str
    columns: dict[str, str]
    fields: dict[str, str]
    rows: int
    bad: tuple[BadRow, ...]
    repeats: tuple[Repeat, ...]
    overlap: tuple[tuple[int, int], ...]
    prompt_tokens: Spread
    answer_tokens: Spread
    total_tokens: int
    truncated: int
    ratings: Ratings | None
    longer_chosen: float | None
    warnings: tuple[str, ...]
    first_example: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class _RenderedRow:
    """A row with its answers as examples and as tokens."""

    row: Preference
    examples: tuple[Example, ...]
    rendered: tuple[Rendered, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each answer."""
        return tuple(sum(tokens.loss_mask) for tokens in self.rendered)


def check_preferences(
    data: PreferenceSet,
    template: Template,
    *,
    held_out: PreferenceSet | None = None,
    ends: Collection[int] = (),
) -> PreferenceReport:
    """Check preferences as `template` renders them. A row that the template refuses is a bad row, and so
    is one that truncation leaves without an answer, also in the held-out file. `ends` as in `check`.
    """
    data, rendered = rendered_preferences(data, template, alone=data.bare)
    if held_out:
        held_out, _ = rendered_preferences(held_out, template, alone=held_out.bare)
    good = [
        _RenderedRow(row, tuple(row.example(index) for index in range(len(row.answers))), tokens)
        for row, tokens in zip(data.rows, rendered, strict=True)
    ]
    answers = [length for item in good for length in item.lengths]
    totals = [len(tokens.ids) for item in good for tokens in item.rendered]
    longer = [item.lengths[0] > item.lengths[-1] for item in good if data.kind == "pairs"]
    rated = [item.row.rating for item in good] if data.kind != "pairs" else []
    lines = {row.key: row.line for row in reversed(held_out.rows)} if held_out else {}
    return PreferenceReport(
        file=data.path,
        kind=data.kind,
        read_by=tuple(f"onebase {command}" for command in COMMANDS[data.kind]),
        format=data.format,
        columns=dict(data.columns),
        fields={field.name: field.use for field in data.fields},
        rows=len(data.rows) + len(data.bad),
        bad=data.bad + (held_out.bad if held_out else ()),
        repeats=_repeats([item.row for item in good]),
        overlap=tuple(
            (item.row.line, lines[item.row.key]) for item in good if item.row.key in lines
        ),
        prompt_tokens=Spread.of([a - b for a, b in zip(totals, answers, strict=True)]),
        answer_tokens=Spread.of(answers),
        total_tokens=sum(totals),
        truncated=sum(tokens.truncated for item in good for tokens in item.rendered),
        ratings=Ratings(min(rated), mean(rated), max(rated), len(set(rated))) if rated else None,
        longer_chosen=mean(longer) if longer else None,
        warnings=(
            *unread(data.fields),
            *(unread(held_out.fields, held_out.path) if held_out else ()),
            *_warnings(data.kind, good, template, ends),
        ),
        first_example=_shown(good[0].examples, template) if good else "",
    )


def _repeats(rows: Sequence[Preference]) -> tuple[Repeat, ...]:
    first_of: dict[object, Preference] = {}
    repeats = []
    for row in rows:
        first = first_of.setdefault((row.prompt, frozenset(row.answers)), row)
        if first is not row:
            same = (first.answers, first.rating) == (row.answers, row.rating)
            repeats.append(Repeat(first.line, row.line, not same))
    return tuple(repeats)


def _shown(answers: Sequence[Example], template: Template) -> str:
    """The text of a row's answers; of a pair, the chosen one with the rejected one below."""
    separator = say("\n--- rejected ---\n", "\n--- 被拒绝 ---\n")
    return separator.join(template.marked_answers(answers))


def _warnings(
    kind: Kind, good: Sequence[_RenderedRow], template: Template, ends: Collection[int]
) -> list[str]:
    examples = [example for item in good for example in item.examples]
    warnings = few_rows(len(good)) + no_end(template) + lost_characters(examples)
    warnings += control_tokens(examples, template, ends)
    warnings += ends_inside(examples, template)
    ratings = [item.row.rating for item in good]
    if kind == "pairs" and good:
        longer = mean(item.lengths[0] > item.lengths[1] for item in good)
        shorter = mean(item.lengths[0] < item.lengths[1] for item in good)
        if max(longer, shorter) >= _MOSTLY:
            which = say("longer", "更长") if longer > shorter else say("shorter", "更短")
            share = max(longer, shorter)
            warnings.append(
                say(
                    f"The chosen answer is {which} in {share:.0%} of the pairs: the model may learn "
                    "only the length.",
                    f"{share:.0%} 的回答对中，被选中的回答{which}：模型学到的可能只是长度。",
                )
            )
    elif good and len(set(ratings)) == 1:
        warnings.append(
            say(
                f"Every answer has the same rating, {ratings[0]:g}: there is nothing to learn.",
                f"所有回答的评分都是 {ratings[0]:g}：没有可学习的内容。",
            )
        )
    elif good and kind == "judged" and min(mean(ratings), 1 - mean(ratings)) < _RARE:
        warnings.append(
            say(
                f"{mean(ratings):.0%} of the answers are good: give the rarer kind more weight with "
                "the settings desirable and undesirable.",
                f"{mean(ratings):.0%} 的回答为好：请用设置 desirable 与 undesirable 提高较少一类的权重。",
            )
        )
    return warnings
