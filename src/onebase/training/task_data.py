"""A job's rows as tokens, to train on and held out for evaluation."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onebase.data.check import left_out, no_end, rewritten
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.fields import unread
from onebase.data.formats import load_dataset, require_good
from onebase.data.refused_rows import rendered_examples, without_room
from onebase.data.split import split
from onebase.data.template import Rendered, Template
from onebase.engine.rows import TokenRow
from onebase.errors import DataError
from onebase.language import say
from onebase.training.job import Job


@dataclass(frozen=True)
class TaskData:
    """A job's rows as tokens, to train on and held out for evaluation, and the examples of each part.
    `bad` are the rows that are left out, `notes` what the user should know before the first step.
    """

    train: list[TokenRow]
    held_out: list[TokenRow]
    train_examples: tuple[Example, ...]
    held_out_examples: tuple[Example, ...]
    dataset: Dataset
    held_out_sha256: str | None
    bad: tuple[BadRow, ...]
    truncated: int
    notes: tuple[str, ...]

    def digest(self) -> str:
        """A hash of all rows as the model sees them, SHA-256."""
        digest = hashlib.sha256()
        for rows in (self.train, self.held_out):
            digest.update(str(len(rows)).encode())
            for row in rows:
                digest.update(array("q", (len(row.ids), *row.ids)).tobytes() + bytes(row.loss_mask))
        return digest.hexdigest()

    def named(self, task: str) -> "TaskData":
        """The same rows for another job's adapter. What was left out or cut is reported once, not here."""
        train, held_out = (
            [replace(row, adapter=task) for row in rows] for rows in (self.train, self.held_out)
        )
        return replace(self, train=train, held_out=held_out, bad=(), truncated=0, notes=())


def task_data(job: Job, template: Template) -> TaskData:
    """Read, render, check and split a job's data. Raises DataError or UsageError."""
    options, _ = job.options()
    rendered: dict[int, Rendered] = {}

    def load(path: str | Path) -> Dataset:
        dataset = load_dataset(path, columns=dict(job.columns) or None, encoding=job.encoding)
        dataset, tokens = rendered_examples(dataset, template)
        require_good(dataset, skip_bad=job.skip_bad)
        rendered.update(zip(map(id, dataset.examples), tokens, strict=True))
        return dataset

    dataset = train = load(job.data)
    bad, unread_columns = dataset.bad, unread(dataset.fields)
    held_out: Dataset | None = None
    held_out_sha256: str | None = None
    if job.held_out is not None:
        held_out = load(job.held_out)
        bad += held_out.bad
        unread_columns += unread(held_out.fields, held_out.path)
        held_out_sha256 = held_out.sha256
    elif options.held_out:
        train, held_out = split(dataset, options.held_out, job.seed)

    empty: list[Example] = []

    def rows(examples: Sequence[Example]) -> tuple[list[TokenRow], tuple[Example, ...]]:
        token_rows, kept = [], []
        for example in examples:
            tokens = rendered[id(example)]
            row = TokenRow(job.task, tokens.ids, tokens.loss_mask)
            if row.labels:
                token_rows.append(row)
                kept.append(example)
            else:
                empty.append(example)
        return token_rows, tuple(kept)

    train_rows, train_examples = rows(train.examples)
    held_out_rows, held_out_examples = rows(held_out.examples if held_out else ())
    if not train_rows:
        raise DataError(
            say(
                f"No row of {job.data} leaves anything to learn within {options.max_tokens} tokens.",
                f"{job.data} 中没有一行能在 {options.max_tokens} 个词元内留下可学习的内容。",
            ),
            say("Raise max_tokens, or shorten the rows.", "请增大 max_tokens，或缩短数据。"),
        )
    train_tokens = [rendered[id(example)] for example in train.examples]
    bad += tuple(without_room(example, template) for example in empty)
    return TaskData(
        train=train_rows,
        held_out=held_out_rows,
        train_examples=train_examples,
        held_out_examples=held_out_examples,
        dataset=dataset,
        held_out_sha256=held_out_sha256,
        bad=bad,
        truncated=sum(tokens.truncated for tokens in train_tokens),
        notes=(
            *left_out(bad),
            *unread_columns,
            *no_end(template),
            *rewritten(train.examples, train_tokens),
        ),
    )
