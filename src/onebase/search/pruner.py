"""Successive halving: who goes on from each rung of a race (Jamieson and Talwalkar 2016)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

# At one twelfth and one quarter of the full length one in 3 and one in 5 of all goes on, at least
# so many; at the half the finalists. Who is best at the end may be seventh at the half: of 24, one
# finalist cost 15 % of loss where three cost 6 % (LOG.md).
_RUNGS = ((12, 3, 3), (4, 5, 2))
_FINAL = 2
_A_FINALIST = 8


@dataclass(frozen=True)
class Rung:
    """At `share` of the full length, and not before `least` optimizer steps, the best `keep` of
    the configurations go on.
    """

    share: float
    keep: int
    least: int = 2

    def step(self, total: int) -> int:
        """Where it is in a training of `total` optimizer steps."""
        return min(total, max(self.least, round(self.share * total)))


def rungs(count: int, finalists: int) -> tuple[Rung, ...]:
    """The rungs of a race of `count` configurations, of which `finalists` learn to the end."""
    # One step alone tells nothing, and every rung shall tell something new.
    early = [
        Rung(1 / part, min(count, max(least, math.ceil(count / one_in))), least_steps)
        for least_steps, (part, one_in, least) in enumerate(_RUNGS, start=2)
    ]
    return (*early, Rung(1 / _FINAL, finalists, 2 + len(early)))


def most_finalists(count: int) -> int:
    """How many of `count` configurations learn to the end where there is no want: one in 8."""
    return math.ceil(count / _A_FINALIST)


def steps_taken(count: int, ladder: Sequence[Rung], total: int) -> int:
    """The optimizer steps of a race, all configurations together, each of `total` at full length."""
    taken, reached, alive = 0, 0, count
    for rung in ladder:
        taken += alive * (rung.step(total) - reached)
        reached, alive = rung.step(total), rung.keep
    return taken + alive * (total - reached)


def judgements(count: int, ladder: Sequence[Rung]) -> int:
    """How many times a configuration is judged at a rung, all rungs together."""
    return count + sum(rung.keep for rung in ladder[:-1])


class HalvingPruner(BasePruner):
    """Keeps the best of all trials that have reported at the rung where a trial stands.

    Optuna's own SuccessiveHalvingPruner is asynchronous (ASHA, Li et al. 2018): it judges a trial
    by those that came to the rung before it, so the first one asked always goes on. Here all
    come to a rung at the same moment, and can all be compared: report every trial, then ask.

    A trial's step is the number of its rung, from 1. Of equal losses, the lower trial number goes
    on; a loss that is not a number never does.
    """

    def __init__(self, ladder: Sequence[Rung]) -> None:
        self._keep = {number: rung.keep for number, rung in enumerate(ladder, start=1)}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial leaves at the rung that it has reported last."""
        rung = trial.last_step
        if rung is None or rung not in self._keep:
            return False
        reported = [
            (other.intermediate_values[rung], other.number)
            for other in study.get_trials(deepcopy=False)
            if rung in other.intermediate_values
        ]
        ranked = sorted(item for item in reported if not math.isnan(item[0]))
        best = [number for _, number in ranked[: self._keep[rung]]]
        return trial.number not in best
