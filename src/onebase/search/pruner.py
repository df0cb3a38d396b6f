"""Which configurations continue from each rung of a race: successive halving (Jamieson and Talwalkar 2016)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

# At one twelfth and one quarter of the full length one in 3 and one in 5 of all continue, or at least
# this number; at one half the finalists. The best at the end may be seventh at one half: of 24, one
# finalist cost 15 % of loss, three cost 6 % (LOG.md).
_RUNGS = ((12, 3, 3), (4, 5, 2))
_FINAL = 2
_A_FINALIST = 8


@dataclass(frozen=True)
class Rung:
    """At `share` of the full length, and not before `least` optimizer steps, the best `keep`
    configurations continue.
    """

    share: float
    keep: int
    least: int = 2

    def step(self, total: int) -> int:
        """The step of this rung in a training of `total` optimizer steps."""
        return min(total, max(self.least, round(self.share * total)))


def rungs_for(count: int, finalists: int) -> tuple[Rung, ...]:
    """The rungs of a race of `count` configurations, of which `finalists` are trained to the end."""
    # One step says nothing, and every rung should add information.
    early = [
        Rung(1 / part, min(count, max(least, math.ceil(count / one_in))), least_steps)
        for least_steps, (part, one_in, least) in enumerate(_RUNGS, start=2)
    ]
    return (*early, Rung(1 / _FINAL, finalists, 2 + len(early)))


def most_finalists(count: int) -> int:
    """The largest number of finalists of `count` configurations: one in 8."""
    return math.ceil(count / _A_FINALIST)


def steps_taken(count: int, rungs: Sequence[Rung], total: int, begun: int = 0) -> int:
    """The optimizer steps of a race, all configurations together, each of `total` at full length; of
    `count` that have taken `begun` steps, those up to the end.
    """
    taken, reached, remaining = 0, begun, count
    for rung in rungs:
        taken += remaining * (rung.step(total) - reached)
        reached, remaining = rung.step(total), rung.keep
    return taken + remaining * (total - reached)


def evaluations_at_rungs(count: int, rungs: Sequence[Rung]) -> int:
    """The number of evaluations at rungs, over all rungs and configurations."""
    return count + sum(rung.keep for rung in rungs[:-1]) if rungs else 0


class HalvingPruner(BasePruner):
    """Keeps the best of all trials that have reported at a rung.

    Optuna's own SuccessiveHalvingPruner is asynchronous (ASHA, Li et al. 2018): it compares a trial with
    those that reached the rung before it, so the first one always continues. Here all reach a rung
    together and can be compared: report every trial, then ask.

    A trial's step is the number of its rung, from 1. Of equal losses, the lower trial number continues;
    a loss that is not a number never does.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self._keep = {number: rung.keep for number, rung in enumerate(rungs, start=1)}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial at the rung that it has reported last."""
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
