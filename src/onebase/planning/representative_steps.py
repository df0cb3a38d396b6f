"""The few steps that represent a whole training, chosen by counts before any step runs.

The rows of every joint step are known beforehand, so a dry run can take the step with the heaviest
pass, to measure memory, and those nearest the mean, to measure time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise

import torch

from onebase.engine.rows import TokenRow, by_budget
from onebase.engine.trunk import common_prefix_length
from onebase.training.batch_sampler import BatchSampler
from onebase.training.job_state import JobState
from onebase.training.loop import pack_tokens

# So many joint steps of each phase are counted; their mean stands for the rest.
_SCANNED = 1000
_TYPICAL = 2
# A later phase gets a step to measure memory where its heaviest pass is heavier by this factor.
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
    """Joint steps in which the same jobs are active: `steps` of them, with `tokens` in all. `chosen` are
    the representative ones in order, the first `heavy` of them for their memory.
    """

    steps: int
    tokens: float
    chosen: list[Batches]
    chosen_tokens: list[int]
    heavy: int
    heaviest: Load


@dataclass
class RepresentativeSteps:
    """Representative steps of jobs that share a base, by phase, and the held-out rows of one pass."""

    states: Sequence[JobState]
    phases: list[Phase] = field(default_factory=list)

    @cached_property
    def held_out(self) -> list[TokenRow]:
        """The held-out rows of the heaviest pass of an evaluation."""
        rows = [row for state in self.states for row in state.data.held_out]
        groups = by_budget(rows, 2 * pack_tokens(self.states[0].base.device))
        return max(groups, key=lambda rows: sum(len(row.ids) for row in rows), default=[])

    def apply(self) -> None:
        """Let the jobs train on these steps alone."""
        steps = [step for phase in self.phases for step in phase.chosen]
        for state in self.states:
            held_out = [row for row in self.held_out if row.adapter == state.task]
            batches = [step[state.task] for step in steps if state.task in step]
            state.use_batches(batches, held_out)


def choose(states: Sequence[JobState]) -> RepresentativeSteps:
    """Representative steps of jobs that share a base, at most _TYPICAL + 1 a phase."""
    representative = RepresentativeSteps(states)
    weigh = _Scales(states)
    heaviest = 0.0
    ends = sorted({state.total_steps for state in states})
    for start, end in pairwise([0, *ends]):
        loads = [weigh(step) for step in _joint_steps(states, start, end)]
        top = max(range(len(loads)), key=lambda index: loads[index].floats)
        wanted = [top] if loads[top].floats > _HEAVIER * heaviest else []
        heaviest = max(heaviest, loads[top].floats)
        heavy = len(wanted)
        wanted += _nearest_the_mean(loads, without=wanted)
        batches = dict(enumerate(_joint_steps(states, start, min(end, start + max(wanted) + 1))))
        representative.phases.append(
            Phase(
                steps=end - start,
                tokens=sum(load.tokens for load in loads) * (end - start) / len(loads),
                chosen=[batches[index] for index in wanted],
                chosen_tokens=[loads[index].tokens for index in wanted],
                heavy=heavy,
                heaviest=loads[top],
            )
        )
    return representative


def _nearest_the_mean(loads: Sequence[Load], without: Sequence[int]) -> list[int]:
    """Up to _TYPICAL joint steps whose tokens and labels are nearest the mean."""
    tokens = sum(load.tokens for load in loads) / len(loads)
    labels = sum(load.labels for load in loads) / len(loads)

    def distance(index: int) -> float:
        load = loads[index]
        return abs(load.tokens / tokens - 1) + abs(load.labels / labels - 1) / 2

    rest = [index for index in range(len(loads)) if index not in without]
    return sorted(rest, key=distance)[:_TYPICAL]


def _joint_steps(states: Sequence[JobState], start: int, end: int) -> Iterator[Batches]:
    """The rows of the joint steps from `start` to `end` (_SCANNED of them at most) by task."""
    samplers = {}
    for state in states:
        if state.total_steps >= end:
            rows = state.options.batch_size * state.options.accumulation
            sampler = BatchSampler(state.data.train, rows, state.job.seed)
            samplers[state.task] = islice(sampler, start, None)
    for _ in range(start, min(end, start + _SCANNED)):
        yield {task: next(sampler) for task, sampler in samplers.items()}


class _Scales:
    """Weighs joint steps of `states`: counts alone, nothing is computed."""

    def __init__(self, states: Sequence[JobState]) -> None:
        shape = states[0].base.shape
        self._pack = pack_tokens(states[0].base.device)
        self._layers = shape.layers
        self._a_token = 1.5 * sum(outputs for _, outputs in shape.linears.values())
        if any(state.options.gradient_checkpointing for state in states):
            self._a_token /= shape.layers
        self._a_label = _KEPT_A_LABEL * shape.vocabulary
        self._sizes = {state.task: state.options.batch_size for state in states}
        self._depths = {state.task: state.depth for state in states}
        self._shared = {state.task: shared(state.data.train) for state in states}
        self._labels = {id(row): row.labels for one in states for row in one.data.train}

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
    """The number of tokens that all rows begin with; a pack holds them once."""
    texts = [row.ids for row in rows]
    # The first and the last in order differ the earliest.
    return common_prefix_length([min(texts), max(texts)]) if texts else 0


def packed(rows: Sequence[TokenRow], shared: Mapping[str, int]) -> int:
    """The tokens of one pack of `rows`, in which a common beginning, and a text with several answers,
    stand once.
    """
    counts: dict[str, int] = {}
    saved = 0
    texts: set[tuple[str, tuple[int, ...]]] = set()
    for row in rows:
        task = str(row.adapter)
        counts[task] = counts.get(task, 0) + 1
        text = (task, row.ids[: min(row.context, len(row.ids) - 1)])
        if text in texts:
            saved += max(0, len(text[1]) - shared.get(task, 0))
        texts.add(text)
    saved += sum((count - 1) * shared.get(task, 0) for task, count in counts.items())
    return sum(len(row.ids) for row in rows) - saved


def evaluation_tokens(rows: Sequence[TokenRow], device: torch.device) -> int:
    """The tokens in the packs of an evaluation of `rows` on `device`."""
    tasks = {str(row.adapter) for row in rows}
    begin = {task: shared(row for row in rows if str(row.adapter) == task) for task in tasks}
    return sum(packed(group, begin) for group in by_budget(rows, 2 * pack_tokens(device)))
