"""What a user wants to know of a file of preferences before learning from it."""

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
from onebase.data.rendering import rendered_preferences
from onebase.data.template import Rendered, Template
from onebase.language import say

_MOSTLY = 0.8  # of the pairs: then length alone tells the better answer
_RARE = 0.1


@dataclass(frozen=True)
class Repeat:
    """A line that says again what an earlier one says; `contradicting` where it says the opposite: a
    pair turned round, or another rating of the same answer.
    """

    first: int
    second: int
    contradicting: bool


@dataclass(frozen=True)
class Ratings:
    """The lowest, the mean and the highest rating, and how many different ones there are."""

    lowest: float
    mean: float
    highest: float
    different: int


@dataclass(frozen=True)
class PreferenceReport:
    """What `check_preferences` found.

    `read_by` are the commands that learn from this kind; `fields` as in CheckReport. `rows` counts good
    and bad rows. `overlap` pairs a line with a line of the held-out file that has its
    question. Token counts are per answer, after truncation; `longer_chosen` is the share of pairs
    whose chosen answer has more tokens than the other (None without pairs).
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
class _Read:
    """A row, its answers as examples, and each of them as tokens."""

    row: Preference
    examples: tuple[Example, ...]
    rendered: tuple[Rendered, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of each answer."""
        return tuple(sum(tokens.loss_mask) for tokens in self.rendered)


def check_preferences(
    data: PreferenceSet,
    template: Template,
    *,
    held_out: PreferenceSet | None = None,
    ends: Collection[int] = (),
) -> PreferenceReport:
    """Look preferences over as `template` will render them. A row that it refuses is a bad row, and so
    is one that its limit leaves nothing to learn of, also of the held-out file. `ends` as in `check`.
    """
    data, rendered = rendered_preferences(data, template, alone=data.bare)
    if held_out:
        held_out, _ = rendered_preferences(held_out, template, alone=held_out.bare)
    good = [
        _Read(row, tuple(row.example(index) for index in range(len(row.answers))), tokens)
        for row, tokens in zip(data.rows, rendered, strict=True)
    ]
    answers = [length for read in good for length in read.lengths]
    totals = [len(tokens.ids) for read in good for tokens in read.rendered]
    longer = [read.lengths[0] > read.lengths[-1] for read in good if data.kind == "pairs"]
    rated = [read.row.rating for read in good] if data.kind != "pairs" else []
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
        repeats=_repeats([read.row for read in good]),
        overlap=tuple(
            (read.row.line, lines[read.row.key]) for read in good if read.row.key in lines
        ),
        prompt_tokens=Spread.of([a - b for a, b in zip(totals, answers, strict=True)]),
        answer_tokens=Spread.of(answers),
        total_tokens=sum(totals),
        truncated=sum(tokens.truncated for read in good for tokens in read.rendered),
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
    first: dict[object, Preference] = {}
    found = []
    for row in rows:
        earlier = first.setdefault((row.asked, frozenset(row.answers)), row)
        if earlier is not row:
            same = (earlier.answers, earlier.rating) == (row.answers, row.rating)
            found.append(Repeat(earlier.line, row.line, not same))
    return tuple(found)


def _shown(answers: Sequence[Example], template: Template) -> str:
    """The first row's answers; of a pair, the chosen one and below it the rejected one."""
    between = say("\n--- rejected ---\n", "\n--- 被拒绝 ---\n")
    return between.join(template.marked_answers(answers))


def _warnings(
    kind: Kind, good: Sequence[_Read], template: Template, ends: Collection[int]
) -> list[str]:
    examples = [example for read in good for example in read.examples]
    found = few_rows(len(good)) + no_end(template) + lost_characters(examples)
    found += control_tokens(examples, template, ends)
    found += ends_inside(examples, template)
    ratings = [read.row.rating for read in good]
    if kind == "pairs" and good:
        longer = mean(read.lengths[0] > read.lengths[1] for read in good)
        shorter = mean(read.lengths[0] < read.lengths[1] for read in good)
        if max(longer, shorter) >= _MOSTLY:
            which = say("longer", "更长") if longer > shorter else say("shorter", "更短")
            share = max(longer, shorter)
            found.append(
                say(
                    f"The chosen answer is {which} in {share:.0%} of the pairs: length alone may be "
                    "what is learned.",
                    f"{share:.0%} 的回答对中，被选中的回答{which}：学到的可能只是长度。",
                )
            )
    elif good and len(set(ratings)) == 1:
        found.append(
            say(
                f"Every answer has the same rating, {ratings[0]:g}: there is nothing to learn.",
                f"所有回答的评分都是 {ratings[0]:g}：没有可学习的内容。",
            )
        )
    elif good and kind == "judged" and min(mean(ratings), 1 - mean(ratings)) < _RARE:
        found.append(
            say(
                f"{mean(ratings):.0%} of the answers are good: weigh the rarer kind more "
                "(the settings desirable and undesirable).",
                f"{mean(ratings):.0%} 的回答为好：请提高较少一类的权重（设置 desirable 与 undesirable）。",
            )
        )
    return found
