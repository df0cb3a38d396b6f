"""Who continues from a rung: ties at the cut, and what they may cost."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.search.test_continuing import STEP, lines
from tests.search.test_race import NINE, Watching

import onebase
from onebase.model.base import Base
from onebase.search import successive_halving as halving_module
from onebase.search.budget import Budget
from onebase.search.candidate import Candidate
from onebase.search.leaderboard import Stop
from onebase.search.race import RaceResult, race
from onebase.search.ties import RowLosses


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> set[frozenset[int]]:
    """The pairs of configurations that tie."""
    pairs: set[frozenset[int]] = set()

    def found(self: RowLosses, one: Candidate, other: Candidate) -> bool:
        return {one.entry.configuration.number, other.entry.configuration.number} in pairs

    monkeypatch.setattr(RowLosses, "tied", found)
    return pairs


def kept(result: RaceResult) -> list[int]:
    return [rung.keep for rung in result.plan.rungs]


def test_a_tie_at_the_cut_is_carried_on(
    losses_told: dict[int, list[float]],
    tied: set[frozenset[int]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the last one that continues, not with the one before it; who comes after a gap is cut."""
    monkeypatch.setattr(halving_module, "_MOST_SHARES_WITH_TIES", (1, 1, 1))
    losses_told |= {number: [number / 10] for number in range(1, 10)}
    losses_told[4] = [0.4, 0.4, 0.15, 0.05]
    tied |= {frozenset(pair) for pair in [(3, 4), (3, 6), (2, 4), (1, 3)]}
    observer = Watching()
    result = race(
        job, base=make_base(), workspace=workspace, space=NINE, count=9, observer=observer
    )
    # 3 and 2 are planned, then 1: 4 ties with 3 at the first rung and with 2 at the second; by its
    # own loss it is second at the third, and 1 alone is a finalist.
    assert [len([1 for reason in rung if reason is None]) for rung in observer.rungs] == [4, 2, 1]
    assert kept(result) == [4, 2, 1]
    assert observer.notes == [
        "At 1/12, 1 more than the planned 3 continue: their held-out losses differ from the last "
        "one's by less than the standard error."
    ]


def test_a_tied_candidate_can_win(
    losses_told: dict[int, list[float]],
    tied: set[frozenset[int]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(halving_module, "_MOST_SHARES_WITH_TIES", (1, 1, 1))
    losses_told |= {number: [number / 10] for number in range(1, 10)}
    losses_told[4] = [0.4, 0.35, 0.15, 0.05]
    tied |= {frozenset(pair) for pair in [(3, 4), (2, 3), (2, 4), (1, 4)]}
    result = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    assert kept(result) == [4, 4, 2]
    assert lines(result)[:2] == [(4, 32, None, None), (1, 32, None, Stop(4, "outdone"))]


def test_ties_are_cut_where_the_race_would_cost_too_much(
    losses_told: dict[int, list[float]],
    tied: set[frozenset[int]],
    job: onebase.Job,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    """All tie. Without a budget the shares decide, with one its tokens."""
    losses_told |= {number: [number / 100] for number in range(1, 10)}
    tied |= {frozenset((one, other)) for one in range(1, 10) for other in range(1, 10)}

    def raced(name: str, budget: Budget | None) -> RaceResult:
        return race(
            job,
            base=make_base(),
            workspace=onebase.Workspace(tmp_path / name),
            space=NINE,
            count=9,
            budget=budget,
        )

    free = raced("free", None)
    whole = free.plan.whole
    assert 0.25 < (free.tokens + free.evaluated_tokens) / whole <= 0.39
    # 9 * 3 + 3 * 5 + 2 * 8 + 16 steps are planned; one more at the first rung takes 5.
    tight = raced("tight", Budget(tokens=round(74 * STEP / 0.98) + 1))
    assert kept(tight)[0] == 3
    some = raced("some", Budget(tokens=round((74 + 11) * STEP / 0.98)))
    assert kept(some)[0] == 5
    assert some.tokens <= (74 + 11) * STEP / 0.98
    ample = raced("ample", Budget(tokens=10**6))
    assert kept(ample)[0] == 6  # at most twice as many as planned
