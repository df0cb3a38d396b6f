"""Who goes on from a rung, on ledgers worked out by hand; what a race costs."""

import math

import optuna
import pytest
from optuna.trial import TrialState

from onebase.search.pruner import (
    HalvingPruner,
    Rung,
    evaluations_at_rungs,
    most_finalists,
    rungs_for,
    steps_taken,
)


def ledger(*rungs_of: list[float], keep: tuple[int, ...]) -> list[list[bool]]:
    """At each rung, whether those still there are pruned; `rungs_of` has everyone's losses."""
    rungs = [Rung(1 / 2 ** (len(keep) - index), count) for index, count in enumerate(keep)]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=HalvingPruner(rungs))
    alive = [(index, study.ask()) for index in range(len(rungs_of[0]))]
    candidate = []
    for number, losses in enumerate(rungs_of, start=1):
        for index, trial in alive:
            trial.report(losses[index], number)
        pruned = [trial.should_prune() for _, trial in alive]
        candidate.append(pruned)
        for (_, trial), out in zip(alive, pruned, strict=True):
            if out:
                study.tell(trial, state=TrialState.PRUNED)
        alive = [item for item, out in zip(alive, pruned, strict=True) if not out]
    return candidate


def test_the_best_go_on_whatever_the_order_in_which_they_are_asked() -> None:
    # The first one asked is the worst: Optuna's own pruner would let it pass.
    assert ledger([5.0, 1.0, 3.0, 2.0], [0.0, 9.0, 0.0, 4.0], keep=(2, 1)) == [
        [True, False, True, False],
        [True, False],
    ]


def test_each_rung_is_judged_by_its_own_losses() -> None:
    # Who was best at the first rung leaves at the second.
    assert ledger([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 5.0, 4.0], keep=(3, 2, 1)) == [
        [False, False, False],
        [True, False, False],
        [True, False],
    ]


def test_of_equals_the_first_goes_on() -> None:
    assert ledger([2.0, 1.0, 1.0, 1.0], keep=(2,)) == [[True, False, False, True]]


def test_what_is_no_number_never_goes_on() -> None:
    assert ledger([math.nan, 1.0, math.nan], keep=(2,)) == [[True, False, True]]
    assert ledger([math.inf, 1.0, 2.0], keep=(2,)) == [[True, False, False]]


def test_without_a_report_or_beyond_the_last_rung_nobody_leaves() -> None:
    study = optuna.create_study(pruner=HalvingPruner([Rung(0.5, 1)]))
    trials = [study.ask(), study.ask()]
    assert not any(trial.should_prune() for trial in trials)
    for trial in trials:
        trial.report(1.0, 2)
    assert not any(trial.should_prune() for trial in trials)


@pytest.mark.parametrize(
    ("count", "kept", "steps", "evaluated"),
    [
        # Rungs after 10, 30 and 60 of 120 steps: 24 * 10 + 8 * 20 + 5 * 30 + 3 * 60 steps, judged
        # 24 + 8 + 5 times.
        (24, [8, 5, 3], 730, 37),
        (48, [16, 10, 6], 1460, 74),
        (25, [9, 5, 4], 820, 39),
        (12, [4, 3, 2], 410, 19),
        (8, [3, 2, 1], 260, 13),
        (6, [3, 2, 1], 240, 11),
        (3, [3, 2, 1], 210, 8),
        (2, [2, 2, 1], 180, 6),
    ],
)
def test_the_ladder_and_what_it_takes(
    count: int, kept: list[int], steps: int, evaluated: int
) -> None:
    rungs = rungs_for(count, most_finalists(count))
    assert [rung.share for rung in rungs] == [1 / 12, 1 / 4, 1 / 2]
    assert [rung.keep for rung in rungs] == kept
    assert steps_taken(count, rungs, 120) == steps
    assert evaluations_at_rungs(count, rungs) == evaluated


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (80, [7, 20, 40]),
        (20, [2, 5, 10]),
        (8, [2, 3, 4]),
        (5, [2, 3, 4]),
        (3, [2, 3, 3]),
        (1, [1, 1, 1]),
    ],
)
def test_rungs_stand_at_whole_steps(total: int, steps: list[int]) -> None:
    assert [rung.step(total) for rung in rungs_for(24, 3)] == steps
