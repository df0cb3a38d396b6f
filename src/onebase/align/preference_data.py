"""A job's preferences as tokens: what it learns from, and what it is judged by."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from onebase.align.answers import Answered, answered
from onebase.align.task import AlignJob, Beginning
from onebase.data.preferences import Kind, PreferenceSet, load_preferences, require_good_rows
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base


@dataclass(frozen=True)
class PreferenceRow:
    """A row as tokens: its answers (a pair's chosen one first) and its rating."""

    answers: tuple[Answered, ...]
    rating: float

    @property
    def tokens(self) -> int:
        """How many tokens its texts have."""
        return sum(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True)
class PreferenceData:
    """A job's rows as tokens: what it learns from, what it is judged by, and the file they are of.
    `notes` are what a user should know of them.
    """

    train: list[PreferenceRow]
    held_out: list[PreferenceRow]
    source: PreferenceSet
    notes: tuple[str, ...] = ()

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
    source = load_preferences(job.data, kinds=kinds, columns=job.columns)
    require_good_rows(source, skip_bad=job.skip_bad)
    return source


def preference_data(
    job: AlignJob,
    base: Base,
    source: PreferenceSet,
    begun: Beginning,
    fraction: float,
    *,
    alone: bool = False,
) -> PreferenceData:
    """The job's rows as tokens, `fraction` of its questions held out where it names no file; an
    answer may stand `alone`. Raises UsageError for a row that is too long for the base's rotary
    embedding, and DataError where nothing is left to learn from or to judge by.
    """
    if job.held_out is not None:
        held = load_preferences(job.held_out, kinds=(source.kind,), columns=job.columns)
        require_good_rows(held, skip_bad=job.skip_bad)
        train = source
    else:
        train, held = source.split(fraction, job.seed)

    def rows(data: PreferenceSet) -> list[PreferenceRow]:
        return [
            PreferenceRow(
                tuple(
                    answered(begun.template, row.example(index), alone=alone)
                    for index in range(len(row.answers))
                ),
                row.rating,
            )
            for row in data.rows
        ]

    learned, judged = (_apart(rows(data), begun.template.max_tokens) for data in (train, held))
    for data, kept, what in (
        (train, learned, say("to learn from", "用于学习")),
        (held, judged, say("held out to judge by", "留出用于评估")),
    ):
        if not kept.rows:
            raise _nothing_left(data, kept, what)
    found = PreferenceData(
        learned.rows,
        judged.rows,
        source,
        tuple(note for note in (learned.note, judged.note) if note),
    )
    texts = [answer.ids for row in (*found.train, *found.held_out) for answer in row.answers]
    base.require_room(begun.adapter.before_text + max(map(len, texts), default=0))
    return found


@dataclass(frozen=True)
class _Apart:
    """Rows whose answers can be told apart, and what to say of the others."""

    rows: list[PreferenceRow]
    note: str


def _apart(rows: list[PreferenceRow], max_tokens: int) -> _Apart:
    """Leaves out the pairs whose answers are the same as tokens: they have no gradient."""
    kept = [row for row in rows if len(set(row.answers)) == len(row.answers)]
    count = len(rows) - len(kept)
    if not count:
        return _Apart(kept, "")
    return _Apart(
        kept,
        say(
            f"{count} of {len(rows)} pairs are left out: cut to max_tokens={max_tokens}, both answers "
            "are the same.",
            f"{len(rows)} 个回答对中有 {count} 个不予使用：截断到 max_tokens={max_tokens} 后，"
            "两个回答相同。",
        ),
    )


def _nothing_left(data: PreferenceSet, kept: _Apart, what: str) -> DataError:
    if kept.note:
        return DataError(
            say(
                f"Nothing of {data.path} is left {what}. {kept.note}",
                f"{data.path} 中没有{what}的数据。{kept.note}",
            ),
            say("Raise max_tokens, or shorten the answers.", "请增大 max_tokens，或缩短回答。"),
        )
    return DataError(
        say(
            f"Nothing of {data.path} is {what}: all of its rows are of one question.",
            f"{data.path} 中没有{what}的数据：所有行属于同一个提问。",
        ),
        say(
            "Add rows of other questions, or name a file with --held-out.",
            "请增加其他提问的数据，或用 --held-out 指定文件。",
        ),
    )
