"""Answering the held-out rows: losses, greedy answers or labels, and the speed of an adapter."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.full import FULL
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import StoredAdapter
from onebase.compare.data import ComparisonData
from onebase.compare.forgetting import neutral_losses
from onebase.compare.result import Forgetting, Outcome
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.pool import LoadedTask
from onebase.engine.rows import TokenRow
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.training.loop import row_losses

_ROWS_AT_ONCE = 64  # between two checks for Ctrl-C
_LOADS = 3
# The speed of answering: so many requests at once, each of so many tokens.
_SPEED_REQUESTS, _SPEED_TOKENS = 16, 16
TASK = "adapter"


@dataclass(frozen=True)
class Answers:
    """What one adapter (or the base) answered, before any metric is computed. `outcomes` have no scores
    yet.
    """

    outcomes: tuple[Outcome, ...]
    forgetting: Mapping[str, Forgetting]
    load_seconds: float | None
    tokens_per_second: float | None


class Answerer:
    """Answers the held-out rows with one adapter after another, all on one `base`. `check` is called
    between two batches, and may raise.
    """

    def __init__(
        self,
        base: Base,
        data: ComparisonData,
        *,
        answer_tokens: int,
        check: Callable[[], None],
    ) -> None:
        self._base = base
        self._data = data
        self._sampling = Sampling(max_tokens=answer_tokens)
        self._check = check
        self._engine = Engine(base)
        self._warm = False
        self._before = neutral_losses(base)

    def stored(self, adapter: StoredAdapter, *, timed: bool) -> Answers:
        """The answers of a trained adapter; `timed`: also its speed."""
        full = adapter.method == FULL
        seconds = []
        for _ in range(1 if full else _LOADS):
            began = time.perf_counter()
            task = self._engine.load(adapter, name=TASK)
            seconds.append(time.perf_counter() - began)
        contribution = NOTHING if full else _contribution(adapter, task.base)
        speed = self._speed() if timed else None
        after = neutral_losses(task.base, contribution)
        answers = Answers(
            self._outcomes(task, self._data.rows, contribution, ()),
            {name: Forgetting(self._before[name], after[name]) for name in after},
            median(seconds),
            speed,
        )
        self._engine.unload(TASK)
        return answers

    def bare(self, examples: Sequence[Turn] = (), *, timed: bool = False) -> Answers:
        """The answers of the base with the task's instruction, and with `examples` in its prompt."""
        task = self._bare_task(examples)
        rows = [row.bare() for row in self._data.rows]
        if examples:
            rows = self._with_examples(task.template, examples)
        speed = self._speed(examples) if timed else None
        answers = Answers(self._outcomes(task, rows, NOTHING, examples), {}, None, speed)
        self._engine.unload(TASK)
        return answers

    def _bare_task(self, examples: Sequence[Turn]) -> LoadedTask:
        settings = self._data.template.config()
        longest = self._base.context or 1 << 20
        template = Template(
            self._base.tokenizer,
            **{**settings, "max_tokens": longest if examples else settings["max_tokens"]},
            moment=self._data.rendered_at,
        )
        return self._engine.tasks.load_full(TASK, self._base, template, labels=self._data.labels)

    def _with_examples(self, template: Template, examples: Sequence[Turn]) -> list[TokenRow]:
        """The held-out rows with examples before the question."""
        rows = []
        for example in self._data.examples:
            rendered = template.example(replace(example, turns=_after(examples, example.turns)))
            answer = (False,) * rendered.begin + (True,) * (len(rendered.ids) - rendered.begin)
            rows.append(TokenRow(None, rendered.ids, answer))
        return rows

    def _outcomes(
        self,
        task: LoadedTask,
        rows: Sequence[TokenRow],
        contribution: Contribution,
        examples: Sequence[Turn],
    ) -> tuple[Outcome, ...]:
        named = [replace(row, adapter=None if contribution is NOTHING else TASK) for row in rows]
        place = {id(row): index for index, row in enumerate(named)}
        losses = [0.0] * len(named)
        for row, loss in row_losses(task.base, named, {TASK: contribution}, self._check):
            losses[place[id(row)]] = loss / row.labels
        questions = [_after(examples, example.turns)[:-1] for example in self._data.examples]
        answers: list[str] = []
        for start in range(0, len(questions), _ROWS_AT_ONCE):
            answers += self._answers(questions[start : start + _ROWS_AT_ONCE])
            self._check()
        return tuple(
            Outcome(loss, row.labels, answer, {})
            for loss, row, answer in zip(losses, rows, answers, strict=True)
        )

    def _answers(self, questions: Sequence[tuple[Turn, ...]]) -> list[str]:
        if self._data.labels:
            scores = self._engine.classify(TASK, questions, self._data.labels)
            return [ranked[0].label for ranked in scores]
        requests = [(TASK, question) for question in questions]
        return [answer.text for answer in self._engine.generate(requests, self._sampling)]

    def _speed(self, examples: Sequence[Turn] = ()) -> float:
        """Tokens per second of many requests at once, prompts included."""
        turns = [_after(examples, example.turns)[:-1] for example in self._data.examples]
        requests = [(TASK, question) for question in turns[:_SPEED_REQUESTS]]
        sampling = Sampling(max_tokens=_SPEED_TOKENS, min_tokens=_SPEED_TOKENS)
        if not self._warm:
            self._engine.generate(requests, sampling)
            self._warm = True
        began = time.perf_counter()
        answers = self._engine.generate(requests, sampling)
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - began)


def _contribution(adapter: StoredAdapter, base: Base) -> Contribution:
    """An adapter's contribution with its virtual tokens, as in training."""
    loaded = load_adapter(adapter.path, base).eval()
    with torch.no_grad():
        return loaded.contribution()


def _after(examples: Sequence[Turn], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Turns with the examples before their first question; a system turn stays in front."""
    lead = 1 if examples and turns and turns[0].role == "system" else 0
    return (*turns[:lead], *examples, *turns[lead:])
