"""What a race may take, and the race that this buys: how many configurations, for how long."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onebase.engine.rows import TokenRow
from onebase.errors import UsageError
from onebase.language import say
from onebase.runs.interruption import Interruption
from onebase.search.pruner import Rung, judgements, most_finalists, rungs, steps_taken
from onebase.training.job_state import TaskData

DEFAULT_COUNT = 12
DEFAULT_EPOCHS = 3
# Configurations and epochs, the largest race first.
_RACES = (
    *((48, 8), (48, 5), (24, 8), (24, 5), (24, 3), (12, 5), (12, 3)),
    *((6, 5), (6, 3), (6, 2), (4, 2), (4, 1), (3, 1)),
)
_COUNTS = (48, 24, 12, 6, 4, 3)
_EPOCHS = (8, 5, 3, 2, 1)
# A race of 24 is to cost a quarter of training all of them to the end. The judgements at its rungs
# take what its training leaves of a little less, between so many held-out rows.
_MOST_SHARE = 0.25
_SHARE = 0.245
_LEAST_ROWS, _MOST_ROWS = 10, 64
# An evaluation has no backward pass: about half of the time a token that learning takes.
_JUDGED_TIME = 0.5
# What is planned fills only so much of the budget: speed varies, and so does the length of rows.
_FILL_TIME = 0.85
_FILL_TOKENS = 0.97

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|k|M|[kM]?\s*tokens)")


@dataclass(frozen=True)
class Budget:
    """Seconds, or tokens to learn from; one of the two is None, or both: no limit."""

    seconds: float | None = None
    tokens: int | None = None

    @classmethod
    def read(cls, text: str) -> "Budget":
        """`10m`, `600s`, `1.5h`; `200k`, `2M`, `200000tokens`. Raises UsageError."""
        match = _TEXT.fullmatch(text.strip())
        amount = float(match[1]) if match else 0.0
        if match is None or amount <= 0:
            raise UsageError(
                say(f"{text!r} is no budget.", f"{text!r} 不是有效的预算。"),
                say(
                    "Give a time (600s, 10m, 1h) or tokens to learn from (200k, 200000tokens).",
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


class OutOfBudget(Exception):
    """The time or the tokens are spent."""


@dataclass
class Limits:
    """When a race has to end: at Ctrl-C, at `deadline` (as time.monotonic() gives it), or when so
    many `tokens` are learned from.
    """

    interruption: Interruption
    deadline: float = math.inf
    tokens: float = math.inf

    def check(self, learned: int = 0) -> None:
        """Raises KeyboardInterrupt or OutOfBudget."""
        if self.interruption.asked:
            raise KeyboardInterrupt
        if time.monotonic() >= self.deadline or learned >= self.tokens:
            raise OutOfBudget


@dataclass(frozen=True)
class Size:
    """How large a data set is: tokens learned from an epoch and its optimizer steps, held-out
    tokens and rows.
    """

    learned: int
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
    """A race: `count` configurations over `epochs`, judged at each rung by `judged_rows` held-out
    rows, at the last one by all of them too. Expected are the tokens `learned` from and those
    `judged`; `whole` is what training all of them to the end would take of both, judged by all
    held-out rows after every epoch.
    """

    count: int
    epochs: int
    ladder: tuple[Rung, ...]
    judged_rows: int
    learned: int
    judged: int
    whole: int

    @property
    def share(self) -> float:
        """The race's cost as a share of that of training all configurations to the end."""
        return (self.learned + self.judged) / self.whole

    def seconds(self, speed: float) -> float:
        """How long it takes at `speed` tokens learned a second."""
        return (self.learned + _JUDGED_TIME * self.judged) / speed


def plan(count: int, epochs: int, size: Size) -> RacePlan:
    """The race of `count` configurations over `epochs` of data of this size, with as many
    finalists as a quarter of the cost of training all to the end pays for, at least one.
    """
    plans = [_plan(count, epochs, size, f) for f in range(most_finalists(count), 0, -1)]
    return next((found for found in plans if found.share <= _MOST_SHARE), plans[-1])


def _plan(count: int, epochs: int, size: Size, finalists: int) -> RacePlan:
    ladder = rungs(count, finalists)
    steps = steps_taken(count, ladder, size.steps * epochs)
    learned = round(steps * size.learned / size.steps)
    whole = count * epochs * (size.learned + size.held_out)
    # All held-out rows: who comes to the last rung, the finalists after every epoch from there on,
    # and the bare base.
    last_come = ladder[-2].keep
    late = finalists * (epochs - int(ladder[-1].share * epochs))
    closing = (last_come + late + 1) * size.held_out
    times = judgements(count, ladder)
    a_row = size.held_out / size.rows
    affordable = (_SHARE * whole - learned - closing) / (times * a_row)
    rows = min(size.rows, round(min(max(affordable, _LEAST_ROWS), _MOST_ROWS)))
    if rows == size.rows:  # the sample is all of them
        closing -= last_come * size.held_out
    judged = round(times * rows * a_row) + closing
    return RacePlan(count, epochs, ladder, rows, learned, judged, whole)


def choose(
    size: Size,
    *,
    most: int,
    count: int | None = None,
    epochs: int | None = None,
    fits: Callable[[RacePlan], bool] | None = None,
) -> RacePlan:
    """The largest race that `fits`, with at most `most` configurations; `count` and `epochs` hold
    where they are given. The smallest where none fits, the usual one where there is no limit.
    """
    if fits is None:
        return plan(count or min(DEFAULT_COUNT, most), epochs or DEFAULT_EPOCHS, size)
    if count is None and epochs is None:
        pairs = list(dict.fromkeys((min(number, most), length) for number, length in _RACES))
    else:
        counts = [min(number, most) for number in _COUNTS] if count is None else [count]
        lengths_of = _EPOCHS if epochs is None else (epochs,)
        pairs = [(number, length) for number in dict.fromkeys(counts) for length in lengths_of]
    plans = sorted((plan(*pair, size) for pair in pairs), key=lambda found: -found.learned)
    return next((found for found in plans if fits(found)), plans[-1])


def fits_tokens(budget: int) -> Callable[[RacePlan], bool]:
    """Whether a race is well within `budget` tokens learned from."""
    return lambda found: found.learned <= _FILL_TOKENS * budget


def fits_seconds(seconds: float, speed: float) -> Callable[[RacePlan], bool]:
    """Whether a race is well within the time that is left, at `speed` tokens a second."""
    return lambda found: found.seconds(speed) <= _FILL_TIME * seconds
