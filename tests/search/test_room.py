"""What is left of a budget, and the race that it has room for."""

import time

import pytest

from onebase.runs.interruption import Interruption
from onebase.search.budget import Limits, RacePlan, Size, plan
from onebase.search.room import Pace, Room, widened

# 12 configurations over 120 steps of 10 tokens: rungs after 10, 30 and 60, where 4, 3 and 2 continue.
SIZE = Size(trained=400, steps=40, held_out=100, rows=10)


def twelve() -> RacePlan:
    return plan(12, 3, SIZE).keeping([4, 3, 2])


def test_what_is_left_of_a_plan_by_hand() -> None:
    race = twelve()
    assert race.evaluation_rows == 10  # all of them
    # 12 * 10 + 4 * 20 + 3 * 30 + 2 * 60 steps.
    assert race.left(0) == (410 * 10, (12 + 4 + 3 + 2 * 2 + 1) * 100)
    assert race.left(1) == ((4 * 20 + 3 * 30 + 2 * 60) * 10, (4 + 3 + 2 * 2) * 100)
    assert race.left(2) == ((3 * 30 + 2 * 60) * 10, (3 + 2 * 2) * 100)
    assert race.left(3) == (2 * 60 * 10, 2 * 2 * 100)


def test_a_sample_is_joined_by_all_rows_at_the_last_rung() -> None:
    race = plan(12, 3, Size(trained=400, steps=40, held_out=1000, rows=100)).keeping([4, 3, 2])
    assert race.evaluation_rows < 100
    sampled = 10 * race.evaluation_rows
    assert race.left(2) == ((3 * 30 + 2 * 60) * 10, 3 * sampled + (3 + 2 * 2) * 1000)
    assert race.left(3) == (2 * 60 * 10, 2 * 2 * 1000)


@pytest.mark.parametrize(
    ("tokens", "keeps"),
    [
        (4299, [4, 3, 2]),
        (4399, [5, 3, 2]),  # one more at the first rung takes 20 steps, at the second 30
        (4400, [4, 4, 2]),
        (4700, [4, 3, 3]),  # a finalist takes 60
        (4900, [5, 3, 3]),
        (5310, [5, 4, 3]),
        (5600, [4, 4, 4]),
        (12 * 1200, [12, 12, 12]),
        (99_999, [12, 12, 12]),
    ],
)
def test_room_goes_to_finalists_first(tokens: int, keeps: list[int]) -> None:
    wider = widened(twelve(), lambda race: race.trained <= tokens)
    assert [rung.keep for rung in wider.rungs] == keeps


def test_from_a_rung_on_only_those_there_can_stay() -> None:
    def keeps(rung: int, entering: int) -> list[int]:
        wider = widened(twelve(), lambda race: True, rung=rung, entering=entering)
        return [item.keep for item in wider.rungs]

    assert keeps(1, 7) == [7, 7, 7]
    assert keeps(2, 4) == [4, 4, 4]
    assert keeps(3, 3) == [4, 3, 3]
    assert keeps(3, 2) == [4, 3, 2]


def test_pace_is_that_of_the_latest() -> None:
    pace = Pace()
    assert pace.seconds(1, 0) == float("inf")
    pace.trained(100, 50.0)
    assert pace.seconds(10, 10) == pytest.approx(5 + 2.5)  # evaluating at half the time by default
    pace.evaluated(100, 10.0)
    assert pace.seconds(10, 10) == pytest.approx(5 + 1)
    for _ in range(100):
        pace.trained(100, 10.0)
    assert pace.seconds(10, 0) == pytest.approx(1)


def test_tokens_leave_a_little_room_and_one_candidate_none() -> None:
    room = Room(Limits(Interruption(), tokens=1000))
    assert room.fits(500, 480, 10**6)
    assert not room.fits(500, 481, 0)
    assert room.fits_alone(500, 500, 10**6)
    assert not room.fits_alone(500, 501, 0)


def test_time_leaves_room_by_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    room = Room(Limits(Interruption(), deadline=200.0))
    assert not room.fits(0, 1, 0)  # nothing was measured
    room.pace.trained(10, 10.0)
    assert room.fits(10**9, 92, 0)
    assert not room.fits(0, 93, 0)
    assert room.fits_alone(0, 97, 0)
    assert not room.fits_alone(0, 98, 0)
