"""Which few steps stand for a whole training, chosen by counts before any step is made.

The rows of every joint step are known beforehand, so a trial can take the one with the heaviest
pass, for the memory, and those nearest the mean, for the time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise

import torch

from onebase.engine.rows import TokenRow, by_budget
from onebase.engine.trunk import common_prefix_length
from onebase.training.batch_sampler import Order
from onebase.training.job_state import Learner
from onebase.training.loop import pack_tokens

# Joint steps of each phase that are looked at; their mean stands for the rest.
_SCANNED = 1000
_TYPICAL = 2
# A later phase gets a step of its own for the memory where its heaviest pass is so much heavier.
_HEAVIER = 1.02
_KEPT_A_LABEL = 3  # logits, their logarithms, their gradients

Batches = Mapping[str, list[TokenRow]]


@dataclass(frozen=True)
class Load:
    """A joint step in numbers: `tokens` in its packs and `labels`; of its heaviest pass, the
    `floats` kept for the backward pass, roughly, its `pass_tokens`, `pass_rows` and the tokens of
    its `longest` row.
    """

    tokens: int
    labels: int
    floats: float
    pass_tokens: int
    pass_rows: int
    longest: int


@dataclass(frozen=True)
class Phase:
    """Joint steps in which the same jobs are active: `steps` of them, with so many `tokens` in
    all. `trial` has those to try, in order, the first `heavy` of them for their memory.
    """

    steps: int
    tokens: float
    trial: list[Batches]
    trial_tokens: list[int]
    heavy: int
    heaviest: Load


@dataclass
class Trial:
    """The trial of jobs on one base: their `phases`, and the held-out rows of one pass."""

    learners: Sequence[Learner]
    phases: list[Phase] = field(default_factory=list)

    @cached_property
    def held_out(self) -> list[TokenRow]:
        """The held-out rows of the heaviest pass of an evaluation."""
        rows = [row for learner in self.learners for row in learner.data.held_out]
        groups = by_budget(rows, 2 * pack_tokens(self.learners[0].base.device))
        return max(groups, key=lambda rows: sum(len(row.ids) for row in rows), default=[])

    def shorten(self) -> None:
        """Let the learners learn no more than the trial."""
        for learner in self.learners:
            task = learner.job.task
            steps = [step for phase in self.phases for step in phase.trial]
            held_out = [row for row in self.held_out if row.adapter == task]
            learner.shorten([step[task] for step in steps if task in step], held_out)


def choose(learners: Sequence[Learner]) -> Trial:
    """The trial of jobs that share a base, of at most _TYPICAL + 1 steps a phase."""
    trial = Trial(learners)
    weigh = _Scales(learners)
    heaviest = 0.0
    ends = sorted({learner.total_steps for learner in learners})
    for start, end in pairwise([0, *ends]):
        loads = [weigh(step) for step in _joint_steps(learners, start, end)]
        top = max(range(len(loads)), key=lambda index: loads[index].floats)
        wanted = [top] if loads[top].floats > _HEAVIER * heaviest else []
        heaviest = max(heaviest, loads[top].floats)
        heavy = len(wanted)
        wanted += _nearest_the_mean(loads, without=wanted)
        found = dict(enumerate(_joint_steps(learners, start, min(end, start + max(wanted) + 1))))
        trial.phases.append(
            Phase(
                steps=end - start,
                tokens=sum(load.tokens for load in loads) * (end - start) / len(loads),
                trial=[found[index] for index in wanted],
                trial_tokens=[loads[index].tokens for index in wanted],
                heavy=heavy,
                heaviest=loads[top],
            )
        )
    return trial


def _nearest_the_mean(loads: Sequence[Load], without: Sequence[int]) -> list[int]:
    """Up to _TYPICAL joint steps whose tokens and labels are nearest the mean."""
    tokens = sum(load.tokens for load in loads) / len(loads)
    labels = sum(load.labels for load in loads) / len(loads)

    def distance(index: int) -> float:
        load = loads[index]
        return abs(load.tokens / tokens - 1) + abs(load.labels / labels - 1) / 2

    rest = [index for index in range(len(loads)) if index not in without]
    return sorted(rest, key=distance)[:_TYPICAL]


def _joint_steps(learners: Sequence[Learner], start: int, end: int) -> Iterator[Batches]:
    """The rows of the joint steps from `start` to `end` (_SCANNED of them at most) by task."""
    orders = {}
    for learner in learners:
        if learner.total_steps >= end:
            rows = learner.options.batch_size * learner.options.accumulation
            order = Order(learner.data.train, rows, learner.job.seed)
            orders[learner.job.task] = islice(order, start, None)
    for _ in range(start, min(end, start + _SCANNED)):
        yield {task: next(order) for task, order in orders.items()}


class _Scales:
    """Weighs joint steps of `learners`: counts alone, nothing is computed."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        shape = learners[0].base.shape
        self._pack = pack_tokens(learners[0].base.device)
        self._layers = shape.layers
        self._a_token = 1.5 * sum(outputs for _, outputs in shape.linears.values())
        if any(learner.options.gradient_checkpointing for learner in learners):
            self._a_token /= shape.layers
        self._a_label = _KEPT_A_LABEL * shape.vocabulary
        self._sizes = {learner.job.task: learner.options.batch_size for learner in learners}
        self._depths = {learner.job.task: learner.depth for learner in learners}
        self._shared = {learner.job.task: shared(learner.data.train) for learner in learners}
        self._labels = {id(row): row.labels for one in learners for row in one.data.train}

    def __call__(self, step: Batches) -> Load:
        """A joint step in numbers."""
        passes = [self._pass(rows) for rows in self._passes(step)]
        top = max(passes, key=lambda load: load.floats)
        return Load(
            sum(load.tokens for load in passes),
            sum(load.labels for load in passes),
            top.floats,
            top.tokens,
            top.pass_rows,
            top.longest,
        )

    def _passes(self, step: Batches) -> Iterator[list[TokenRow]]:
        """As the joint loop makes them: micro-batches in turn, by the layer they begin at."""
        turns = max(-(-len(rows) // self._sizes[task]) for task, rows in step.items())
        for turn in range(turns):
            by_depth: dict[int, list[TokenRow]] = {}
            for task, rows in step.items():
                size = self._sizes[task]
                part = rows[turn * size : (turn + 1) * size]
                by_depth.setdefault(self._depths[task], []).extend(part)
            for rows in by_depth.values():
                yield from by_budget(rows, self._pack)

    def _pass(self, rows: Sequence[TokenRow]) -> Load:
        tokens = packed(rows, self._shared)
        labels = sum(self._labels[id(row)] for row in rows)
        above = 1 - self._depths[str(rows[0].adapter)] / self._layers
        floats = tokens * self._a_token * above + labels * self._a_label
        longest = max(len(row.ids) for row in rows)
        return Load(tokens, labels, floats, tokens, len(rows), longest)


def shared(rows: Iterable[TokenRow]) -> int:
    """How many tokens all rows begin with, which a pack holds once."""
    texts = [row.ids for row in rows]
    # The first and the last in order differ the earliest.
    return common_prefix_length([min(texts), max(texts)]) if texts else 0


def packed(rows: Sequence[TokenRow], shared: Mapping[str, int]) -> int:
    """The tokens of one pack of `rows`, where what all begin with and a text that several answer
    stand once.
    """
    counts: dict[str, int] = {}
    saved = 0
    asked: set[tuple[str, tuple[int, ...]]] = set()
    for row in rows:
        task = str(row.adapter)
        counts[task] = counts.get(task, 0) + 1
        text = (task, row.ids[: min(row.context, len(row.ids) - 1)])
        if text in asked:
            saved += max(0, len(text[1]) - shared.get(task, 0))
        asked.add(text)
    saved += sum((count - 1) * shared.get(task, 0) for task, count in counts.items())
    return sum(len(row.ids) for row in rows) - saved


def judged_tokens(rows: Sequence[TokenRow], device: torch.device) -> int:
    """The tokens in the packs of an evaluation of `rows` on `device`."""
    tasks = {str(row.adapter) for row in rows}
    begin = {task: shared(row for row in rows if str(row.adapter) == task) for task in tasks}
    return sum(packed(group, begin) for group in by_budget(rows, 2 * pack_tokens(device)))
