"""What is left of a race's budget: whether more training fits into it, and how many may continue."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from onebase.search.budget import EVALUATION_TIME, Limits, RacePlan

# A plan fills this share of what is left at a rung: the speed and the length of rows vary. Training one
# candidate to the end, there is less to vary; and where it fails, what is stored is safe.
_FILL_TIME = 0.92
_FILL_TOKENS = 0.98
_FILL_ALONE = 0.97
_LATEST = 24


class Pace:
    """How long training and evaluating take a token, by the latest steps and evaluations."""

    def __init__(self) -> None:
        self._training: deque[tuple[int, float]] = deque(maxlen=_LATEST)
        self._evaluations: deque[tuple[int, float]] = deque(maxlen=_LATEST)

    def trained(self, tokens: int, seconds: float) -> None:
        """Joint steps took so long."""
        self._training.append((tokens, seconds))

    def evaluated(self, tokens: int, seconds: float) -> None:
        """Evaluations took so long."""
        self._evaluations.append((tokens, seconds))

    def seconds(self, trained: float, evaluated: float) -> float:
        """How long so many more tokens will take; infinite before the first step."""
        if not self._training:
            return math.inf
        a_token = _mean(self._training)
        evaluation = _mean(self._evaluations) if self._evaluations else EVALUATION_TIME * a_token
        return trained * a_token + evaluated * evaluation


@dataclass
class Room:
    """What is left of a budget."""

    limits: Limits
    pace: Pace = field(default_factory=Pace)

    def fits(self, used: int, trained: float, evaluated: float) -> bool:
        """Whether training on so many more tokens, and evaluating on so many, keeps well within the
        limits; `used` tokens were trained on.
        """
        if used + trained > _FILL_TOKENS * self.limits.tokens:
            return False
        return self._in_time(trained, evaluated, _FILL_TIME)

    def fits_alone(self, used: int, trained: float, evaluated: float) -> bool:
        """The same for one candidate, whose tokens are known."""
        in_tokens = used + trained <= self.limits.tokens
        return in_tokens and self._in_time(trained, evaluated, _FILL_ALONE)

    def _in_time(self, trained: float, evaluated: float, share: float) -> bool:
        if math.isinf(self.limits.deadline):
            return True
        seconds_left = self.limits.deadline - time.monotonic()
        return self.pace.seconds(trained, evaluated) <= share * seconds_left


def widened(
    plan: RacePlan, fits: Callable[[RacePlan], bool], *, rung: int = 1, entering: int | None = None
) -> RacePlan:
    """The plan with as many more that continue from `rung` on (counted from 1) as `fits`: first at the
    last rung, so another finalist; where none is left or fits, at the rung before, and so on. `entering`
    is how many are at `rung` now.
    """
    while True:
        keeps = [item.keep for item in plan.rungs]
        before = [plan.count, *keeps]
        before[rung - 1] = before[rung - 1] if entering is None else entering
        for index in reversed(range(rung - 1, len(keeps))):
            if keeps[index] < before[index]:
                wider = plan.keeping([*keeps[:index], keeps[index] + 1, *keeps[index + 1 :]])
                if fits(wider):
                    plan = wider
                    break
        else:
            return plan


def _mean(measured: deque[tuple[int, float]]) -> float:
    tokens = sum(count for count, _ in measured)
    return sum(seconds for _, seconds in measured) / max(1, tokens)
