"""A job's preferences as tokens, to train on and held out for evaluation."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from onebase.adapters.experts import unchanged_experts
from onebase.align.answers import PromptAnswer, prompt_answer
from onebase.align.job import AlignJob
from onebase.align.start import Start
from onebase.data.check import left_out, no_end
from onebase.data.example import BadRow
from onebase.data.fields import unread
from onebase.data.preferences import Kind, PreferenceSet, load_preferences, require_good_rows
from onebase.data.refused_rows import rendered_preferences
from onebase.data.template import Rendered
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base


@dataclass(frozen=True)
class PreferenceRow:
    """A row as tokens: its answers (a pair's chosen one first) and its rating."""

    answers: tuple[PromptAnswer, ...]
    rating: float

    @property
    def tokens(self) -> int:
        """How many tokens its texts have."""
        return sum(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True)
class PreferenceData:
    """A job's rows as tokens: to train on, held out for evaluation, the `source` file, the rows left out,
    and notes for the user.
    """

    train: list[PreferenceRow]
    held_out: list[PreferenceRow]
    source: PreferenceSet
    bad: tuple[BadRow, ...]
    notes: tuple[str, ...]

    def digest(self) -> str:
        """A hash of all rows as the model sees them, SHA-256."""
        digest = hashlib.sha256()
        for rows in (self.train, self.held_out):
            digest.update(str(len(rows)).encode())
            for row in rows:
                digest.update(repr(row.rating).encode())
                for answer in row.answers:
                    lengths = (len(answer.prompt), len(answer.answer))
                    digest.update(array("q", (*lengths, *answer.ids)).tobytes())
        return digest.hexdigest()


def load_rows(job: AlignJob, kinds: Sequence[Kind]) -> PreferenceSet:
    """The job's file. Raises DataError or UsageError."""
    source = load_preferences(job.data, kinds=kinds, columns=job.columns, encoding=job.encoding)
    require_good_rows(source, skip_bad=job.skip_bad)
    return source


def preference_data(
    job: AlignJob,
    base: Base,
    source: PreferenceSet,
    start: Start,
    fraction: float,
    *,
    alone: bool = False,
) -> PreferenceData:
    """The job's rows as tokens, `fraction` of its questions held out where it names no file; an
    answer may stand `alone`. Raises DataError for rows that the template refuses, unless they are to
    be skipped, and where no row is left to train on or for evaluation; UsageError for a row that is
    too long for the base's rotary embedding.
    """
    tokens_of: dict[int, tuple[Rendered, ...]] = {}

    def rendered(data: PreferenceSet) -> PreferenceSet:
        data, tokens = rendered_preferences(data, start.template, alone=alone)
        require_good_rows(data, skip_bad=job.skip_bad)
        tokens_of.update(zip(map(id, data.rows), tokens, strict=True))
        return data

    source = rendered(source)
    bad = source.bad
    if job.held_out is not None:
        kinds, columns = (source.kind,), job.columns
        held = load_preferences(job.held_out, kinds=kinds, columns=columns, encoding=job.encoding)
        held = rendered(held)
        bad += held.bad
        train = source
    else:
        train, held = source.split(fraction, job.seed)
    for part, what in (
        (train, say("to train on", "用于训练")),
        (held, say("for evaluation", "用于评估")),
    ):
        if not part.rows:
            raise _nothing_left(part, what)

    def rows(data: PreferenceSet) -> list[PreferenceRow]:
        return [
            PreferenceRow(tuple(map(prompt_answer, tokens_of[id(row)])), row.rating)
            for row in data.rows
        ]

    notes = (
        *left_out(bad),
        *unread(source.fields),
        *(unread(held.fields, held.path) if job.held_out is not None else ()),
        *(() if alone else no_end(start.template)),
        *unchanged_experts(base, [start.adapter.method]),
        *start.notes,
    )
    data = PreferenceData(rows(train), rows(held), source, bad, notes)
    texts = [answer.ids for row in (*data.train, *data.held_out) for answer in row.answers]
    base.require_room(start.adapter.before_text + max(map(len, texts), default=0))
    return data


def _nothing_left(data: PreferenceSet, what: str) -> DataError:
    return DataError(
        say(
            f"No row of {data.path} is left {what}: all rows have the same question.",
            f"{data.path} 中没有{what}的数据：所有行属于同一个提问。",
        ),
        say(
            "Add rows with other questions, or name a file with --held-out.",
            "请增加其他提问的数据，或用 --held-out 指定文件。",
        ),
    )
