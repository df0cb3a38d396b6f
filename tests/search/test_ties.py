"""Ties at a rung: the paired standard error on numbers worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.training.test_loop import write_rows

from onebase.engine.rows import TokenRow
from onebase.model.base import Base
from onebase.search.candidate import Candidate
from onebase.search.ties import RowLosses, paired_difference
from onebase.training.job import Job
from onebase.training.job_state import JobState


def test_a_paired_difference_by_hand() -> None:
    """Rows of one label are a mean: of 1, 2 and 6 it is 3, and its error 2.6458 / sqrt(3)."""
    difference, error = paired_difference([1.0, 2.0, 6.0], [1, 1, 1], "abc")
    assert difference == pytest.approx(3.0)
    assert error == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))


def test_rows_weigh_by_their_labels() -> None:
    """(2 + 4) / (1 + 3) = 1.5; residuals .5 and -.5, so sqrt(2 / 1 * .5) / 4 = .25."""
    assert paired_difference([2.0, 4.0], [1, 3], "ab") == (1.5, pytest.approx(0.25))


def test_answers_to_one_input_are_one_cluster() -> None:
    """Residuals of 1 and -1 twice: as four rows sqrt(4 / 3 * 4) / 4, as two clusters sqrt(2 * 8) / 4."""
    differences, labels = [2.0, 2.0, 0.0, 0.0], [1, 1, 1, 1]
    assert paired_difference(differences, labels, "abcd")[1] == pytest.approx(math.sqrt(16 / 3) / 4)
    assert paired_difference(differences, labels, "aabb")[1] == pytest.approx(1.0)


def test_one_input_tells_nothing() -> None:
    assert paired_difference([5.0, 5.0], [1, 1], "aa") == (5.0, math.inf)


@pytest.fixture
def candidates(tmp_path: Path, make_base: Callable[..., Base]) -> list[Candidate]:
    base = make_base()
    path = write_rows(tmp_path, "a", 20)
    settings = {"held_out": 0.2, "rank": 2}
    states = [JobState(Job(name, path, set=settings), base) for name in ("one", "other")]
    return [cast(Candidate, SimpleNamespace(state=state)) for state in states]


def told(candidates: list[Candidate], losses: list[list[float]]) -> RowLosses:
    """Row losses that arrive in another order than that of the rows."""
    found = RowLosses()
    record = found.recorder([candidate.state for candidate in candidates])
    pairs: list[tuple[TokenRow, float]] = [
        (row, loss)
        for candidate, values in zip(candidates, losses, strict=True)
        for row, loss in zip(candidate.state.data.held_out, values, strict=True)
    ]
    for row, loss in reversed(pairs):
        record(row, loss)
    return found


@pytest.mark.parametrize(
    ("apart", "tied"),
    [
        ([0.0, 0.0, 0.0, 0.0], True),
        ([1.0, -1.0, 1.0, -1.0], True),
        ([3.0, -1.0, 3.0, -1.0], True),  # a mean of 1 in either, and an error above it
        ([1.0, 1.2, 0.8, 1.0], False),
        ([-1.0, -1.2, -0.8, -1.0], False),
        ([math.nan, 0.0, 0.0, 0.0], False),
    ],
)
def test_a_tie_is_a_difference_within_its_error(
    apart: list[float], tied: bool, candidates: list[Candidate]
) -> None:
    rows = candidates[0].state.data.held_out
    assert len(rows) == 4
    first: list[float] = [10.0 * row.labels for row in rows]
    second = [loss + row.labels * more for loss, row, more in zip(first, rows, apart, strict=True)]
    losses = told(candidates, [first, second])
    assert losses.tied(*candidates) == losses.tied(*reversed(candidates)) == tied


def test_without_the_same_rows_nothing_ties(candidates: list[Candidate]) -> None:
    one, other = candidates
    losses = RowLosses()
    assert not losses.tied(one, other)
    record: Any = losses.recorder([one.state])
    for row in one.state.data.held_out:
        record(row, 1.0)
    assert not losses.tied(one, other)
