"""What a race may take, and the race that this buys."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.test_loop import write_rows

from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.runs.interruption import Interruption
from onebase.search.budget import (
    Budget,
    Limits,
    OutOfBudget,
    Size,
    choose,
    fits_seconds,
    fits_tokens,
    plan,
)
from onebase.training.job import Job
from onebase.training.job_state import JobState


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("600s", Budget(seconds=600)),
        ("10m", Budget(seconds=600)),
        ("10 min", Budget(seconds=600)),
        ("1.5h", Budget(seconds=5400)),
        ("200k", Budget(tokens=200_000)),
        ("2M", Budget(tokens=2_000_000)),
        ("0.5M", Budget(tokens=500_000)),
        ("200000tokens", Budget(tokens=200_000)),
        (" 200k tokens ", Budget(tokens=200_000)),
    ],
)
def test_a_budget_is_a_time_or_tokens(text: str, expected: Budget) -> None:
    assert Budget.read(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "0m", "ten minutes", "10m20s", "1e3s", "5x", "nan s"]
)
def test_anything_else_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    with pytest.raises(UsageError, match=r"is not a budget.*10m.*200k"):
        Budget.read(text)


def test_a_plan_by_hand() -> None:
    """160 rows of 40 tokens, 60 held out, 4 epochs, 24 configurations."""
    candidate = plan(24, 4, Size(trained=6400, steps=20, held_out=2400, rows=60))
    # Rungs after 7, 20 and 40 of 80 steps: 24 * 7 + 8 * 13 + 5 * 20 + 3 * 40 = 492 of 320 tokens.
    assert candidate.trained == 492 * 320
    assert candidate.whole == 24 * 4 * (6400 + 2400)
    # By all rows: 5 at the last rung, 3 after epochs 3 and 4, the bare base: 12 * 2400. A share of
    # .245 leaves 206,976 - 157,440 - 28,800 = 20,736 tokens: 14 rows of 40, 37 times.
    assert candidate.evaluation_rows == 14
    assert candidate.evaluated == 37 * 14 * 40 + 28_800
    assert candidate.share == pytest.approx((157_440 + 49_520) / 844_800)
    assert candidate.share < 0.25
    assert candidate.seconds(100.0) == (157_440 + 49_520 / 2) / 100


@pytest.mark.parametrize(
    ("rows", "held_out", "epochs"),
    [(160, 60, 4), (160, 16, 4), (300, 30, 3), (1000, 100, 3), (270, 30, 5), (5000, 700, 3)],
)
def test_a_race_of_24_costs_at_most_a_quarter(rows: int, held_out: int, epochs: int) -> None:
    candidate = plan(24, epochs, Size(40 * rows, rows // 8, 40 * held_out, held_out))
    assert 0.15 < candidate.share <= 0.25
    assert 10 <= candidate.evaluation_rows <= min(64, held_out)


@pytest.mark.parametrize(
    ("count", "held_out", "epochs", "finalists"),
    [(24, 60, 4, 3), (24, 16, 4, 2), (24, 16, 3, 1), (48, 60, 4, 6), (6, 60, 4, 1)],
)
def test_as_many_finalists_as_a_quarter_pays_for(
    count: int, held_out: int, epochs: int, finalists: int
) -> None:
    """The less judging takes in training all to the end, the less a quarter of that is."""
    candidate = plan(count, epochs, Size(40 * 160, 20, 40 * held_out, held_out))
    assert candidate.rungs[-1].keep == finalists


def test_few_held_out_rows_are_all_used() -> None:
    assert plan(24, 3, Size(4000, 20, 200, 5)).evaluation_rows == 5


SIZE = Size(trained=6400, steps=20, held_out=640, rows=16)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # 12.1 lengths of 8 epochs: 619,520 tokens and 3 % of room
        (640_000, (48, 8)),
        (638_000, (48, 5)),
        (200_000, (24, 5)),
        (110_000, (24, 3)),
        (62_000, (12, 3)),
        (30_000, (6, 2)),
        (10, (3, 1)),  # the smallest: it will be stopped
    ],
)
def test_tokens_buy_configurations_and_epochs(tokens: int, expected: tuple[int, int]) -> None:
    candidate = choose(SIZE, most=81, fits=fits_tokens(tokens))
    assert (candidate.count, candidate.epochs) == expected
    assert (candidate.trained <= tokens) == (expected != (3, 1))


def test_time_buys_them_by_the_speed() -> None:
    for speed in (50.0, 170.0, 1000.0):
        candidate = choose(SIZE, most=81, fits=fits_seconds(600, speed))
        assert candidate.seconds(speed) <= 0.85 * 600
    assert choose(SIZE, most=81, fits=fits_seconds(600, 1000.0)).count == 48


def test_what_is_given_holds() -> None:
    fits = fits_tokens(60_000)
    by_count = choose(SIZE, most=81, count=24, fits=fits)
    assert (by_count.count, by_count.epochs) == (24, 1)
    by_epochs = choose(SIZE, most=81, epochs=2, fits=fits)
    assert (by_epochs.count, by_epochs.epochs) == (12, 2)
    both = choose(SIZE, most=81, count=7, epochs=9, fits=fits)
    assert (both.count, both.epochs) == (7, 9)


def test_a_small_space_is_raced_for_longer() -> None:
    candidate = choose(SIZE, most=5, fits=fits_tokens(200_000))
    assert (candidate.count, candidate.epochs) == (5, 8)


def test_without_a_limit_it_is_the_usual_race() -> None:
    assert [choose(SIZE, most=most).count for most in (81, 4)] == [12, 4]
    assert choose(SIZE, most=81).epochs == 3


def test_limits() -> None:
    interruption = Interruption()
    Limits(interruption).check(10**12)
    Limits(interruption, deadline=time.monotonic() + 60, tokens=100).check(99)
    with pytest.raises(OutOfBudget):
        Limits(interruption, tokens=100).check(100)
    with pytest.raises(OutOfBudget):
        Limits(interruption, deadline=time.monotonic()).check(0)
    interruption.asked = True
    with pytest.raises(KeyboardInterrupt):
        Limits(interruption, tokens=100).check(100)


def test_the_size_of_data(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    job = Job("a", write_rows(tmp_path, "a", 20), set={"held_out": 0.25})
    data = JobState(job, make_base()).data
    size = Size.of(data, 4)
    assert size.steps == 4
    assert size.rows == len(data.held_out) == 5
    assert size.trained == sum(len(row.ids) for row in data.train)
    assert size.held_out == sum(len(row.ids) for row in data.held_out)
