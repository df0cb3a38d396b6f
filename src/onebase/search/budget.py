"""The budget of a race, and the race that fits it: how many configurations, for how many epochs."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from onebase.engine.rows import TokenRow
from onebase.errors import UsageError
from onebase.language import say
from onebase.runs.interruption import Interruption
from onebase.search.pruner import Rung, evaluations_at_rungs, most_finalists, rungs_for, steps_taken
from onebase.training.task_data import TaskData

DEFAULT_COUNT = 12
DEFAULT_EPOCHS = 3
# Configurations and epochs, the largest race first.
_RACES = (
    *((48, 8), (48, 5), (24, 8), (24, 5), (24, 3), (12, 5), (12, 3)),
    *((6, 5), (6, 3), (6, 2), (4, 2), (4, 1), (3, 1)),
)
_COUNTS = (48, 24, 12, 6, 4, 3)
_EPOCHS = (8, 5, 3, 2, 1)
# A race of 24 should cost a quarter of training all of them to the end. The evaluations at its rungs get
# what the training leaves of a little less than that, within these numbers of held-out rows.
_MOST_SHARE = 0.25
_SHARE = 0.245
_LEAST_ROWS, _MOST_ROWS = 10, 64
# An evaluation has no backward pass: a token takes about half of the time that it takes in training.
EVALUATION_TIME = 0.5
# A plan fills only this share of the budget: speed and the length of rows vary.
_FILL_TIME = 0.85
_FILL_TOKENS = 0.97

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|k|M|[kM]?\s*tokens)")


@dataclass(frozen=True)
class Budget:
    """Seconds, or tokens to train on. Without a limit both are None."""

    seconds: float | None = None
    tokens: int | None = None

    @classmethod
    def read(cls, text: str) -> "Budget":
        """`10m`, `600s`, `1.5h`; `200k`, `2M`, `200000tokens`. Raises UsageError."""
        match = _TEXT.fullmatch(text.strip())
        amount = float(match[1]) if match else 0.0
        if match is None or amount <= 0:
            raise UsageError(
                say(f"{text!r} is not a budget.", f"{text!r} 不是有效的预算。"),
                say(
                    "Give a time (600s, 10m, 1h) or a number of tokens to train on (200k, 200000tokens).",
                    "请给出时间（600s、10m、1h）或训练词元数（200k、200000tokens）。",
                ),
            )
        unit = match[2].removesuffix("tokens").strip()
        if match[2] in _UNITS:
            return cls(seconds=amount * _UNITS[match[2]])
        return cls(tokens=round(amount * {"": 1, "k": 1000, "M": 1_000_000}[unit]))

    @property
    def text(self) -> str:
        """Like `600s` or `200000 tokens`; empty without a limit."""
        if self.seconds is not None:
            return f"{self.seconds:g}s"
        return "" if self.tokens is None else f"{self.tokens} tokens"

    def used(self, tokens: int, seconds: float) -> float | None:
        """The share of it that so many tokens or seconds are; None without a limit."""
        if self.seconds is not None:
            return seconds / self.seconds
        return None if self.tokens is None else tokens / self.tokens


class OutOfBudget(Exception):
    """The time or the tokens are used up."""


@dataclass
class Limits:
    """What ends a race: Ctrl-C, a `deadline` (of time.monotonic()), or a number of `tokens` trained on."""

    interruption: Interruption
    deadline: float = math.inf
    tokens: float = math.inf

    @property
    def limited(self) -> bool:
        """Whether time or tokens are limited."""
        return math.isfinite(self.deadline) or math.isfinite(self.tokens)

    def check(self, trained: int = 0, coming: int = 0) -> None:
        """Before a step of `coming` tokens. Raises KeyboardInterrupt or OutOfBudget."""
        if self.interruption.asked:
            raise KeyboardInterrupt
        spent = trained >= self.tokens or trained + coming > self.tokens
        if time.monotonic() >= self.deadline or spent:
            raise OutOfBudget


@dataclass(frozen=True)
class Size:
    """The size of a task's data: tokens `trained` on and optimizer `steps` an epoch, tokens and `rows` of
    the `held_out` part.
    """

    trained: int
    steps: int
    held_out: int
    rows: int

    @classmethod
    def of(cls, data: TaskData, rows_a_step: int) -> "Size":
        """The size of a task's data."""
        steps = math.ceil(len(data.train) / rows_a_step)
        return cls(tokens_of(data.train), steps, tokens_of(data.held_out), len(data.held_out))


def tokens_of(rows: Sequence[TokenRow]) -> int:
    """The tokens of some rows."""
    return sum(len(row.ids) for row in rows)


@dataclass(frozen=True)
class RacePlan:
    """A race: `count` configurations over `epochs` of data of a `size`, evaluated at each rung on
    `evaluation_rows` held-out rows, at the last rung on all rows too.
    """

    count: int
    epochs: int
    size: Size
    rungs: tuple[Rung, ...]
    evaluation_rows: int

    @property
    def trained(self) -> int:
        """The expected tokens to train on."""
        return self.left(0)[0]

    @property
    def evaluated(self) -> int:
        """The expected tokens of all evaluations."""
        return self.left(0)[1]

    @property
    def whole(self) -> int:
        """The tokens of both where all are trained to the end and evaluated on all rows every epoch."""
        return self.count * self.epochs * (self.size.trained + self.size.held_out)

    @property
    def share(self) -> float:
        """The race's cost as a share of that of training all configurations to the end."""
        return (self.trained + self.evaluated) / self.whole

    @property
    def shares(self) -> list[str]:
        """Every rung's share of the full length, like `1/12`."""
        return [str(Fraction(rung.share).limit_denominator(64)) for rung in self.rungs]

    def left(self, reached: int) -> tuple[int, int]:
        """The expected tokens to train on, and of the evaluations, from rung `reached` on (0: all)."""
        size, rungs = self.size, self.rungs[reached:]
        total = size.steps * self.epochs
        last = self.rungs[reached - 1] if reached else None
        remaining, begun = (last.keep, last.step(total)) if last else (self.count, 0)
        steps = steps_taken(remaining, rungs, total, begun)
        # On all held-out rows: those at the last rung, the finalists after every epoch from there on,
        # and the bare base.
        final = self.rungs[-1]
        on_all_rows = final.keep * (self.epochs - int(final.share * self.epochs)) + (not reached)
        if rungs and self.evaluation_rows < size.rows:
            on_all_rows += self.rungs[-2].keep if len(rungs) > 1 else remaining
        sampled = evaluations_at_rungs(remaining, rungs) * self.evaluation_rows
        evaluated = round(sampled * size.held_out / size.rows) + on_all_rows * size.held_out
        return round(steps * size.trained / size.steps), evaluated

    def keeping(self, keeps: Sequence[int]) -> "RacePlan":
        """The same race, with these numbers of configurations that continue from its rungs."""
        rungs = [replace(rung, keep=keep) for rung, keep in zip(self.rungs, keeps, strict=True)]
        return replace(self, rungs=tuple(rungs))

    def seconds(self, speed: float) -> float:
        """How long it takes at `speed` tokens trained on a second."""
        return (self.trained + EVALUATION_TIME * self.evaluated) / speed


def plan(count: int, epochs: int, size: Size) -> RacePlan:
    """The race of `count` configurations over `epochs` of data of this size, with as many
    finalists as fit into a quarter of the cost of training all to the end, at least one.
    """
    plans = [_plan(count, epochs, size, f) for f in range(most_finalists(count), 0, -1)]
    return next((candidate for candidate in plans if candidate.share <= _MOST_SHARE), plans[-1])


def _plan(count: int, epochs: int, size: Size, finalists: int) -> RacePlan:
    rungs = rungs_for(count, finalists)
    unsampled = RacePlan(count, epochs, size, rungs, evaluation_rows=0)
    a_row = size.held_out / size.rows
    affordable = (_SHARE * unsampled.whole - unsampled.trained - unsampled.evaluated) / (
        evaluations_at_rungs(count, rungs) * a_row
    )
    rows = min(size.rows, round(min(max(affordable, _LEAST_ROWS), _MOST_ROWS)))
    return replace(unsampled, evaluation_rows=rows)


def choose(
    size: Size,
    *,
    most: int,
    count: int | None = None,
    epochs: int | None = None,
    fits: Callable[[RacePlan], bool] | None = None,
) -> RacePlan:
    """The largest race that `fits`, of at most `most` configurations; a given `count` or `epochs` is
    kept. Where none fits, the smallest; without a limit, the default one.
    """
    if fits is None:
        return plan(count or min(DEFAULT_COUNT, most), epochs or DEFAULT_EPOCHS, size)
    if count is None and epochs is None:
        pairs = list(dict.fromkeys((min(number, most), length) for number, length in _RACES))
    else:
        counts = [min(number, most) for number in _COUNTS] if count is None else [count]
        lengths_of = _EPOCHS if epochs is None else (epochs,)
        pairs = [(number, length) for number in dict.fromkeys(counts) for length in lengths_of]
    plans = sorted((plan(*pair, size) for pair in pairs), key=lambda candidate: -candidate.trained)
    return next((candidate for candidate in plans if fits(candidate)), plans[-1])


def fits_tokens(budget: int) -> Callable[[RacePlan], bool]:
    """Whether a race is well within `budget` tokens trained on."""
    return lambda candidate: candidate.trained <= _FILL_TOKENS * budget


def fits_seconds(seconds: float, speed: float) -> Callable[[RacePlan], bool]:
    """Whether a race is well within the time that is left, at `speed` tokens a second."""
    return lambda candidate: candidate.seconds(speed) <= _FILL_TIME * seconds
