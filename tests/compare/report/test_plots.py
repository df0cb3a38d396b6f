"""Plots: well-formed, the same each time, their words as text."""

import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from onebase.compare.report.plots import Line, Point, cost_plot, curve_plot, short

POINTS = [
    Point("lora", 1.4e9, 0.9, 0.85, 0.95, True),
    Point("ia3", 1.2e9, 0.7, 0.6, 0.8, False),
    Point("full", 2.9e9, 0.92, -float("inf"), float("inf"), True),
]
COLOURS = {"lora": 0, "ia3": 1, "full": 9}


def quality(points=POINTS, lower=False, **labels) -> str:
    texts = {
        "cost_label": "peak memory",
        "metric_label": "accuracy",
        "tied_label": "tied set",
        "front_label": "Pareto front",
    }
    return cost_plot(
        points,
        ["ia3", "lora"],
        {"base": 0.3},
        lower_is_better=lower,
        colour_of=COLOURS,
        cost_text=short,
        **(texts | labels),
    )


def words(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_words_stay_text() -> None:
    found = words(quality())
    for word in ("lora", "ia3", "full", "base", "peak memory", "tied set", "Pareto front"):
        assert word in found


def test_chinese_needs_no_font_here() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = quality(cost_label="峰值内存", metric_label="准确率")
    assert {"峰值内存", "准确率"} <= set(words(svg))
    assert "PingFang SC" in svg


def test_a_dollar_starts_no_formula_and_markup_stays_text() -> None:
    assert "a$b$ <i>&" in words(quality(metric_label="a$b$ <i>&"))


def test_the_same_plot_is_drawn_each_time() -> None:
    assert quality() == quality()


def test_no_setting_of_matplotlib_is_left_changed() -> None:
    before = dict(mpl.rcParams)
    quality()
    assert dict(mpl.rcParams) == before


def height(svg: str, text: str) -> float:
    """How far below the top a tick's label stands."""
    root = ElementTree.fromstring(svg)
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        if node.text == text:
            return float(node.get("y") or re.findall(r"[\d.]+", node.get("transform"))[1])
    raise AssertionError(text)


@pytest.mark.parametrize(("lower", "above"), [(False, "0.9"), (True, "0.6")])
def test_the_better_value_stands_above(lower, above) -> None:
    svg = quality(lower=lower)
    below = {"0.9": "0.6", "0.6": "0.9"}[above]
    assert height(svg, above) < height(svg, below)


def test_one_point_is_enough() -> None:
    svg = cost_plot(
        POINTS[:1],
        ["lora"],
        {},
        lower_is_better=False,
        colour_of=COLOURS,
        cost_label="c",
        metric_label="m",
        tied_label="tied set",
        front_label="Pareto front",
        cost_text=short,
    )
    assert "lora" in words(svg)
    assert "Pareto front" not in words(svg)


def test_curves_of_several_seeds_have_one_entry_in_the_legend() -> None:
    lines = [
        Line("lora", [0, 10], [3.0, 1.0]),
        Line("lora", [0, 10], [3.1, 1.1]),
        Line("ia3", [0], [2.0]),
    ]
    svg = curve_plot(lines, colour_of=COLOURS, tokens_label="tokens", loss_label="loss", smooth=0.8)
    assert words(svg).count("lora") == 1
    assert {"ia3", "tokens", "loss"} <= set(words(svg))


def test_counts_on_an_axis_are_short() -> None:
    assert [short(value) for value in (500, 20_000, 1_500_000, 2e9)] == ["500", "20k", "1.5M", "2G"]
