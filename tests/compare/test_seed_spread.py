"""The spread of a method's seeds."""

import pytest

from onebase.compare.seed_spread import seed_spread


def test_three_seeds_by_hand() -> None:
    spread = seed_spread({0: 0.7, 1: 0.8, 2: 0.6})
    assert spread.deviation == pytest.approx(0.1)
    assert (spread.low, spread.high) == (0.6, 0.8)
    assert spread.range == pytest.approx(0.2)
    assert spread.means == {0: 0.7, 1: 0.8, 2: 0.6}


def test_one_seed_has_no_deviation() -> None:
    assert seed_spread({3: 0.7}).deviation is None
