"""Quantities as people read them."""

import math

import pytest

from onebase import quantity
from onebase.language import set_language


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (48_000, "48.0 kB"),
        (3_700_000, "3.70 MB"),
        (99_960_000, "100.0 MB"),
        (101_000_000, "101 MB"),
        (1_449_000_000, "1.45 GB"),
        (25_276_502_016, "25.3 GB"),
        (2e12, "2.00 TB"),
    ],
)
def test_a_size_has_three_digits(count, text) -> None:
    assert quantity.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (3.42, "3.4 s"),
        (9.97, "10 s"),
        (205, "205 s"),
        (1460, "24 min"),
        (9000, "2.5 h"),
    ],
)
def test_a_duration(seconds, text) -> None:
    assert quantity.duration(seconds) == text


def test_units_of_time_are_translated() -> None:
    set_language("zh")
    assert [quantity.duration(value) for value in (0.01, 5, 1460)] == [
        "10 毫秒",
        "5.0 秒",
        "24 分钟",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(100, "100 %"), (0.685, "0.69 %"), (0.0086, "0.0086 %"), (12.34, "12 %"), (0, "0 %")],
)
def test_a_percentage_has_two_significant_digits(value, text) -> None:
    assert quantity.percent(value) == text


def test_a_number_has_the_decimals_of_its_column() -> None:
    assert quantity.decimals([0.9, math.inf]) == 3
    assert quantity.decimals([0.9, 12.0]) == 2
    assert quantity.decimals([81.5]) == 1
    assert quantity.number(1234.5, 1) == "1,234.5"


def test_numbers_that_are_none() -> None:
    assert quantity.number(None) == "–"
    assert quantity.number(math.nan) == "–"
    assert quantity.number(-math.inf) == "−∞"


def test_a_difference_has_a_sign_and_zero_has_none() -> None:
    assert quantity.signed(0.25) == "+0.250"
    assert quantity.signed(-0.25) == "−0.250"
    assert quantity.signed(0.0001) == "0.000"
    assert quantity.signed(-0.0001) == "0.000"
    assert quantity.interval(-0.1, 0.2, sign=True) == "[−0.100, +0.200]"


def test_a_small_p_value() -> None:
    assert quantity.p_value(0.0004) == "< 0.001"
    assert quantity.p_value(0.04) == "0.040"


def test_names_in_a_sentence() -> None:
    assert quantity.joined(["a"]) == "a"
    assert quantity.joined(["a", "b", "c"]) == "a, b and c"
    set_language("zh")
    assert quantity.joined(["a", "b", "c"]) == "a、b 和 c"
