"""The rows of a comparison: training, validation and held-out part, the same for every method."""

import hashlib
import json
import random
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from typing import Any

from onebase.compare.options import CompareOptions
from onebase.compare.result import HeldOutRow, Kind
from onebase.data.example import Example, Turn
from onebase.data.split import split
from onebase.data.template import Template
from onebase.engine.rows import TokenRow
from onebase.errors import DataError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.quantity import listed, plural
from onebase.training.job import Job
from onebase.training.options import TrainOptions
from onebase.training.task_data import TaskData, task_data

_FEW_EXAMPLES, _MANY_EXAMPLES = 4, 8


@dataclass(frozen=True)
class ComparisonData:
    """The rows of one comparison. `training` has the rows to train on and, as its held-out rows, the
    validation rows that choose a training's best epoch. `examples` and `rows` are the held-out part,
    which no training sees: every method is scored on it.
    """

    template: Template
    rendered_at: datetime
    training: TaskData
    examples: tuple[Example, ...]
    rows: tuple[TokenRow, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; empty unless the task is a classification."""
        return self.training.dataset.labels

    @property
    def kind(self) -> Kind:
        """Whether labels are scored, or answers generated."""
        return "classification" if self.labels else "generation"

    @property
    def held_out(self) -> tuple[HeldOutRow, ...]:
        """The held-out rows as they are reported; rows with the same input are one cluster."""
        clusters: dict[tuple[Turn, ...], int] = {}
        for example in self.examples:
            clusters.setdefault(example.input_key, len(clusters))
        return tuple(
            HeldOutRow(
                example.file,
                example.line,
                example.input,
                example.answer,
                clusters[example.input_key],
            )
            for example in self.examples
        )

    def digest(self) -> str:
        """A hash of all three parts, SHA-256: as texts, and as the model sees them. Where the chat template
        writes the date, which changes from day to day, as texts alone.
        """
        parts = (self.training.train_examples, self.training.held_out_examples, self.examples)
        texts = [[[astuple(turn) for turn in one.turns] for one in part] for part in parts]
        told: list[Any] = [texts, self.labels]
        if not self.template.dated:
            held_out = replace(self.training, train=[], held_out=list(self.rows))
            told += [self.training.digest(), held_out.digest()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def shown_examples(self, count: int | None, seed: int) -> list[tuple[Turn, ...]]:
        """Training rows to put before a question, each as its turns: a draw by `seed`, each label in turn.
        None: one for each label, 4 at least and 8 at most.
        """
        wanted = count or min(max(len(self.labels), _FEW_EXAMPLES), _MANY_EXAMPLES)
        draw = random.Random(seed)
        pool = list(self.training.train_examples)
        draw.shuffle(pool)
        by_label: dict[str, list[Example]] = {}
        for example in pool:
            by_label.setdefault(example.answer if self.labels else "", []).append(example)
        chosen: list[Example] = []
        while len(chosen) < min(wanted, len(pool)):
            for examples in by_label.values():
                if examples and len(chosen) < wanted:
                    chosen.append(examples.pop())
        draw.shuffle(chosen)
        return [
            tuple(replace(turn, in_loss=False) for turn in example.turns if turn.role != "system")
            for example in chosen
        ]


def comparison_data(
    job: Job, options: CompareOptions, base: Base, rendered_at: datetime
) -> ComparisonData:
    """Read, render and split the rows of a comparison. Raises DataError, and UsageError where nothing
    is left to score.
    """
    template = Template(
        base.tokenizer,
        kind=job.template,
        instruction=job.instruction,
        max_tokens=_trained_with(job).max_tokens,
        moment=rendered_at,
    )
    shared = {"held_out": options.share, **_known_to_all(job)}
    whole = task_data(replace(job, set=shared), template)
    if not whole.held_out:
        raise _nothing_held_out(job)
    _require_context(base, whole.held_out, whole.held_out_examples)
    kept = replace(whole.dataset, examples=whole.train_examples, bad=())
    training, validation = split(kept, _trained_with(job).held_out, job.seed)
    row_of = dict(zip(map(id, whole.train_examples), whole.train, strict=True))
    parts = replace(
        whole,
        train=[row_of[id(example)] for example in training.examples],
        held_out=[row_of[id(example)] for example in validation.examples],
        train_examples=training.examples,
        held_out_examples=validation.examples,
        notes=(*whole.notes, *_unseen_labels(whole)),
    )
    return ComparisonData(
        template, rendered_at, parts, whole.held_out_examples, tuple(whole.held_out)
    )


def _known_to_all(job: Job) -> dict[str, object]:
    """The settings of training that hold for all methods, besides the share of the split."""
    fields = TrainOptions.model_fields
    return {key: value for key, value in job.set.items() if key in fields and key != "held_out"}


def _trained_with(job: Job) -> TrainOptions:
    known = {key: value for key, value in job.set.items() if key in TrainOptions.model_fields}
    return replace(job, method="lora", set=known).options()[0]


def _require_context(base: Base, rows: list[TokenRow], examples: tuple[Example, ...]) -> None:
    """Raise DataError for a held-out row that is longer than the base's context."""
    context = base.context
    for row, example in zip(rows, examples, strict=True):
        if context is not None and len(row.ids) >= context:
            raise DataError(
                say(
                    f"{example.file}:{example.line} has {len(row.ids)} tokens, and {base.context_text} "
                    "leaves no room for an answer.",
                    f"{example.file}:{example.line} 有 {len(row.ids)} 个词元，超出 {base.context_text}，"
                    "没有回答的空间。",
                ),
                say(
                    f"Set max_tokens below {context} to cut longer rows, or shorten them.",
                    f"请将 max_tokens 设为小于 {context} 以截断更长的行，或缩短数据。",
                ),
            )


def _unseen_labels(whole: TaskData) -> list[str]:
    """A note for labels in the held-out part that no other row has: no method can learn them."""
    if not whole.dataset.labels:
        return []
    seen = {example.answer for example in whole.train_examples}
    rows = [example.answer for example in whole.held_out_examples if example.answer not in seen]
    if not rows:
        return []
    unseen = list(dict.fromkeys(rows))
    count = plural(len(rows), "held-out row has", "held-out rows have")
    return [
        say(
            f"{count} a label that no training row has, so no method can learn it: {listed(unseen)}.",
            f"{len(rows)} 条留出数据的标签未在训练数据中出现，任何方法都学不到：{listed(unseen)}。",
        )
    ]


def _nothing_held_out(job: Job) -> UsageError:
    return UsageError(
        say(
            f"No row of {job.held_out or job.data} is left to score the methods on.",
            f"{job.held_out or job.data} 中没有可用于评分的数据。",
        ),
        say(
            "Give more rows, or a file with --held-out.",
            "请提供更多数据，或用 --held-out 指定文件。",
        ),
    )
