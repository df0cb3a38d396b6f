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
from onebase.compare.result import EXAMPLES, Forgetting, Outcome
from onebase.data.example import Turn
from onebase.data.template import Template, last_answer
from onebase.engine.engine import Engine
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt import request_for
from onebase.engine.request import Request
from onebase.engine.rows import TokenRow
from onebase.engine.sampling import Sampling
from onebase.language import say
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
    between two batches, and may raise; `note` tells the user something.
    """

    def __init__(
        self,
        base: Base,
        data: ComparisonData,
        *,
        answer_tokens: int,
        check: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._base = base
        self._data = data
        self._sampling = Sampling(max_tokens=answer_tokens)
        self._check = check
        self._note = note
        self._engine = Engine(base)
        self._warm: set[Base] = set()
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
        speed = self._speed(task, self._data.rows) if timed else None
        after = neutral_losses(task.base, contribution)
        answers = Answers(
            self._outcomes(task, self._data.rows, contribution),
            {name: Forgetting(self._before[name], after[name]) for name in after},
            median(seconds),
            speed,
        )
        self._engine.unload(TASK)
        return answers

    def bare(self, examples: Sequence[tuple[Turn, ...]] = (), *, timed: bool = False) -> Answers:
        """The answers of the base with the task's instruction, and with `examples` in its prompt: as many of
        them as the context has room for.
        """
        rows = [row.bare() for row in self._data.rows]
        if examples:
            rows = self._with_examples(examples)
        task = self._engine.tasks.load_full(
            TASK, self._base, self._data.template, labels=self._data.labels
        )
        speed = self._speed(task, rows) if timed else None
        answers = Answers(self._outcomes(task, rows, NOTHING), {}, None, speed)
        self._engine.unload(TASK)
        return answers

    def _with_examples(self, examples: Sequence[tuple[Turn, ...]]) -> list[TokenRow]:
        """The held-out rows with examples before the question."""
        context = self._base.context or 1 << 20
        settings = {**self._data.template.config(), "max_tokens": 1 << 20}
        template = Template(self._base.tokenizer, **settings, moment=self._data.rendered_at)
        shown = list(examples)
        while True:
            turns = [turn for example in shown for turn in example]
            rendered = [
                template.example(replace(example, turns=_after(turns, example.turns)))
                for example in self._data.examples
            ]
            longest = max(len(one.ids) for one in rendered)
            if longest + self._sampling.max_tokens <= context or not shown:
                break
            shown.pop()
        if len(shown) < len(examples):
            self._note(
                say(
                    f"{EXAMPLES}: the context of {self._base.name} has room for {len(shown)} of "
                    f"{len(examples)} examples.",
                    f"{EXAMPLES}：{self._base.name} 的上下文只容得下 {len(examples)} 个示例中的 "
                    f"{len(shown)} 个。",
                )
            )
        if not shown:
            return [row.bare() for row in self._data.rows]
        return [TokenRow(None, one.ids, one.loss_mask).bare() for one in rendered]

    def _outcomes(
        self, task: LoadedTask, rows: Sequence[TokenRow], contribution: Contribution
    ) -> tuple[Outcome, ...]:
        named = [replace(row, adapter=None if contribution is NOTHING else TASK) for row in rows]
        place = {id(row): index for index, row in enumerate(named)}
        losses = [0.0] * len(named)
        for row, loss in row_losses(task.base, named, {TASK: contribution}, self._check):
            losses[place[id(row)]] = loss / row.labels
        answers: list[str] = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            answers += self._answers(task, rows[start : start + _ROWS_AT_ONCE])
            self._check()
        return tuple(
            Outcome(loss, row.labels, answer, {})
            for loss, row, answer in zip(losses, rows, answers, strict=True)
        )

    def _answers(self, task: LoadedTask, rows: Sequence[TokenRow]) -> list[str]:
        """The labels or the greedy answers to the rows' questions, cut as in training."""
        questions = [_question(row) for row in rows]
        if self._data.labels:
            scores = self._engine.classify(TASK, questions, self._data.labels)
            return [ranked[0].label for ranked in scores]
        return [request.text.strip() for request in self._run(task, questions, self._sampling)]

    def _speed(self, task: LoadedTask, rows: Sequence[TokenRow]) -> float:
        """Tokens per second of many requests at once, prompts included. A runner answers other rows first:
        its first pass takes longer, and the prompts of these must not be in its cache.
        """
        sampling = Sampling(max_tokens=_SPEED_TOKENS, min_tokens=_SPEED_TOKENS)
        if task.base not in self._warm:
            training = [row.bare() for row in self._data.training.train[:_SPEED_REQUESTS]]
            self._run(task, [_question(row) for row in training], sampling)
            self._warm.add(task.base)
        questions = [_question(row) for row in rows[:_SPEED_REQUESTS]]
        began = time.perf_counter()
        answers = self._run(task, questions, sampling)
        seconds = time.perf_counter() - began
        return sum(len(request.tokens) for request in answers) / seconds

    def _run(
        self, task: LoadedTask, questions: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Request]:
        requests = [request_for((task,), question, sampling) for question in questions]
        self._engine.run(requests)
        return requests


def _question(row: TokenRow) -> tuple[int, ...]:
    """A row's tokens before its last answer."""
    return row.ids[: last_answer(row.loss_mask)]


def _contribution(adapter: StoredAdapter, base: Base) -> Contribution:
    """An adapter's contribution with its virtual tokens, as in training."""
    loaded = load_adapter(adapter.path, base).eval()
    with torch.no_grad():
        return loaded.contribution()


def _after(examples: Sequence[Turn], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Turns with the examples before their first question; a system turn stays in front."""
    lead = 1 if examples and turns and turns[0].role == "system" else 0
    return (*turns[:lead], *examples, *turns[lead:])
