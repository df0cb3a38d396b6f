"""Which method is the cheapest: noise, direction, the Pareto front."""

import pytest

from onebase.compare.recommend.costs import COSTS, CostName, pareto, times_undercut

MEMORY: CostName = "peak_memory_bytes"
SIZE: CostName = "adapter_bytes"
SPEED: CostName = "tokens_per_second"


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [
        (MEMORY, {"a": 100, "b": 110, "c": 111}, ["a", "b"]),  # 10 % is noise
        (SIZE, {"a": 100, "b": 101}, ["a"]),  # a file has one size
        (SIZE, {"a": 100, "b": 100}, ["a", "b"]),
        (SPEED, {"a": 110, "b": 100, "c": 99}, ["a", "b"]),  # more is better
    ],
)
def test_the_cheapest(name: CostName, values: dict[str, float], kept: list[str]) -> None:
    assert COSTS[name].cheapest(values) == kept


def test_the_worst_of_several_seeds() -> None:
    assert COSTS[MEMORY].worst([3, 5, 4]) == 5
    assert COSTS[SPEED].worst([30, 50]) == 30


def test_the_pareto_front() -> None:
    table: dict[str, dict[CostName, float]] = {
        "light": {MEMORY: 1, SIZE: 9, SPEED: 5},
        "small": {MEMORY: 9, SIZE: 1, SPEED: 5},
        "fast": {MEMORY: 9, SIZE: 9, SPEED: 7},
        "dominated": {MEMORY: 9, SIZE: 9, SPEED: 5},  # by all three
        "twin": {MEMORY: 1, SIZE: 9, SPEED: 5},  # equal to light, so both stay
        "unknown": {MEMORY: 0.5},  # the least memory; the rest counts as the worst
    }
    assert pareto(table, [MEMORY, SIZE, SPEED]) == ["light", "small", "fast", "twin", "unknown"]
    assert pareto(table, [SIZE, SPEED]) == ["small", "fast"]


def test_how_often_another_is_cheaper() -> None:
    table: dict[str, dict[CostName, float]] = {
        "a": {MEMORY: 100, SIZE: 3},
        "b": {MEMORY: 105, SIZE: 2},  # as light as a, within the noise
        "c": {MEMORY: 200, SIZE: 1},
        "d": {},
    }
    counts = {name: times_undercut(name, table, [MEMORY, SIZE]) for name in table}
    assert counts == {"a": 2, "b": 1, "c": 2, "d": 6}
