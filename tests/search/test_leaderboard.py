"""The ladder of a race: its order, its table in plain values, and its picture."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from onebase.search.leaderboard import (
    Entry,
    Evaluation,
    Stop,
    draw_leaderboard,
    ranked,
    write_leaderboard,
)
from onebase.search.space import Configuration


def entry(
    number: int,
    rungs: list[float],
    stop: Stop | None = None,
    method: str = "lora",
    late: float | None = None,
) -> Entry:
    evaluations = [
        Evaluation(rung, 10 * 2**rung, 400 * 2**rung, loss, 16)
        for rung, loss in enumerate(rungs, start=1)
    ]
    if late is not None:
        evaluations.append(Evaluation(None, 160, 6400, late, 60))
    training_losses = [(100 * step, 4.0 / step + number / 50) for step in range(1, 9 * len(rungs))]
    return Entry(
        Configuration(number, method, {"rank": number}), evaluations, training_losses, 10, 400, stop
    )  # fmt: skip


def climbed() -> list[Entry]:
    return [
        entry(1, [1.0], Stop(1, "pruned")),
        entry(2, [0.9, 0.8], Stop(2, "pruned"), "p-tuning"),
        entry(3, [], Stop(1, "exploded"), "ia3"),
        entry(4, [0.7, 0.6, 0.5], late=0.4),
        entry(5, [0.9], Stop(1, "pruned"), "prompt-tuning"),
        entry(6, [0.3, 0.9], Stop(2, "pruned"), "p-tuning-v2"),
        entry(7, [1.0], Stop(1, "pruned")),
    ]


def test_who_came_further_stands_higher() -> None:
    found = [item.configuration.number for item in ranked(climbed())]
    assert found == [4, 2, 6, 5, 1, 7, 3]


def test_who_has_not_left_stands_highest() -> None:
    """Where a race ended early, its best may not have been the best at the last rung."""
    stopped = [entry(1, [0.5], Stop(2, "stopped")), entry(2, [0.6])]
    assert [item.configuration.number for item in ranked(stopped)] == [2, 1]


def test_it_is_written_in_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "ladder.json"
    write_leaderboard(file, ranked(climbed()), task="文", end="finished")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert (saved["task"], saved["end"]) == ("文", "finished")
    assert saved["ladder"][0] == {
        "rank": 1,
        "number": 4,
        "method": "lora",
        "settings": {"rank": 4},
        "losses": [
            {"rung": 1, "step": 20, "tokens": 800, "loss": 0.7, "rows": 16},
            {"rung": 2, "step": 40, "tokens": 1600, "loss": 0.6, "rows": 16},
            {"rung": 3, "step": 80, "tokens": 3200, "loss": 0.5, "rows": 16},
            {"rung": None, "step": 160, "tokens": 6400, "loss": 0.4, "rows": 60},
        ],
        "step": 10,
        "tokens": 400,
        "left": None,
        "continued_from": None,
    }
    assert saved["ladder"][-1]["left"] == {"rung": 1, "reason": "exploded"}


Points = list[tuple[float, float]]
Draw = Callable[[list[Entry], float | None], Axes]
LORA, P_TUNING, IA3, PROMPT, V2 = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draw a leaderboard; its axes, with all that was drawn on them."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, file: Any, **settings: Any) -> None:
        figures.append(figure)
        save(figure, file, **settings)

    monkeypatch.setattr(Figure, "savefig", kept)

    def axes_of(entries: list[Entry], base_loss: float | None) -> Axes:
        file = tmp_path / "ladder.png"
        draw_leaderboard(file, entries, base_loss)
        with Image.open(file) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", (1200, 720))
        (axes,) = figures.pop().axes
        return axes

    return axes_of


def points(line: Line2D) -> Points:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def drawn(axes: Axes, marker: str, style: str = "-") -> list[tuple[str, Points]]:
    """The colours and points of the lines with a marker ("None": the thin ones and the base's)."""
    lines = [
        line for line in axes.lines if (line.get_marker(), line.get_linestyle()) == (marker, style)
    ]
    return [(str(line.get_color()), points(line)) for line in lines]


def test_held_out_losses_are_drawn_in_a_colour_a_method(draw: Draw) -> None:
    axes = draw(ranked(climbed()), None)
    assert sorted(drawn(axes, "o")) == sorted(
        [
            (LORA, [(800, 1.0)]),
            (P_TUNING, [(800, 0.9), (1600, 0.8)]),
            (LORA, [(800, 0.7), (1600, 0.6), (3200, 0.5), (6400, 0.4)]),
            (PROMPT, [(800, 0.9)]),
            (V2, [(800, 0.3), (1600, 0.9)]),
            (LORA, [(800, 1.0)]),
        ]
    )
    widths = [line.get_linewidth() for line in axes.lines if line.get_marker() == "o"]
    assert widths == [1.2] * 5 + [2.8]  # the winner's, over the others
    legend = axes.get_legend()
    assert legend is not None
    methods = ["lora", "p-tuning", "ia3", "prompt-tuning", "p-tuning-v2"]  # as they entered
    assert [text.get_text() for text in legend.get_texts()] == [*methods, "stopped"]
    handles = [line.get_color() for line in legend.get_lines()]
    assert handles == [LORA, P_TUNING, IA3, PROMPT, V2, "#555555"]
    assert axes.get_title() == "7 configurations; winner: 4 lora rank=4"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_a_cross_is_where_a_configuration_stopped(draw: Draw) -> None:
    untested = entry(8, [], Stop(1, "exploded"))  # before its first evaluation: its last loss
    untested.training_losses = [(100, 3.0), (200, 9.0)]
    assert sorted(drawn(draw(ranked([*climbed(), untested]), None), "x")) == sorted(
        [
            (LORA, [(800, 1.0)]),
            (P_TUNING, [(1600, 0.8)]),
            (PROMPT, [(800, 0.9)]),
            (V2, [(1600, 0.9)]),
            (LORA, [(800, 1.0)]),
            (LORA, [(200, 9.0)]),
        ]
    )


def test_the_six_best_are_named_where_they_end(draw: Draw) -> None:
    axes = draw(ranked(climbed()), None)
    ends = {text.get_text(): (text.xy, text.get_fontweight()) for text in axes.texts}  # type: ignore[attr-defined]
    assert ends == {
        "4": ((6400, 0.4), "bold"),
        "2": ((1600, 0.8), "normal"),
        "6": ((1600, 0.9), "normal"),
        "5": ((800, 0.9), "normal"),
        "1": ((800, 1.0), "normal"),
        "7": ((800, 1.0), "normal"),
    }
    eighth = [*climbed(), entry(9, [1.1], Stop(1, "pruned"))]
    assert {text.get_text() for text in draw(ranked(eighth), None).texts} == set("426517")


def test_training_losses_are_smoothed(draw: Draw) -> None:
    """As Adam's moments with a decay of .8: 4, then (.8 · 4 + 2) / 1.8, then (.64 · 4 + .8 · 2 + 1) / 2.44."""
    jagged = entry(1, [0.5])
    jagged.training_losses = [(100, 4.0), (200, 2.0), (300, 1.0)]
    ((colour, smooth),) = drawn(draw([jagged], None), "None")
    assert colour == LORA
    assert smooth == [
        (100, pytest.approx(4.0)),
        (200, pytest.approx(5.2 / 1.8)),
        (300, pytest.approx(5.16 / 2.44)),
    ]


def test_the_bare_base_is_a_line_across(draw: Draw) -> None:
    axes = draw(ranked(climbed()), 3.0)
    assert drawn(axes, "None", ":") == [("#999999", [(0, 3.0), (1, 3.0)])]
    (text,) = [text for text in axes.texts if text.get_text() == "bare base"]
    assert text.xy == (0.995, 3.0)  # type: ignore[attr-defined]
    axes = draw(ranked(climbed()), None)
    assert drawn(axes, "None", ":") == []
    assert "bare base" not in [text.get_text() for text in axes.texts]


NOT_JUDGED = [entry(1, []), entry(2, [], Stop(1, "stopped"))]
NOT_JUDGED[0].training_losses = [(100, 2.0), (200, 1.5)]
CHINESE = Entry(
    Configuration(1, "lora", {"init_text": "从 $\\x{$ 开始"}), [Evaluation(1, 2, 80, 2.0, 5)]
)


@pytest.mark.parametrize(
    ("entries", "lines", "scale"),
    [
        ([entry(1, [0.5, 0.4])], 2, "log"),
        (NOT_JUDGED, 1, "linear"),
        ([entry(1, [1e-9, 1e-12])], 2, "log"),
        ([entry(1, [0.0, 0.0])], 2, "linear"),  # a logarithm has no place for 0
        ([CHINESE], 1, "linear"),
    ],
    ids=["one", "not judged", "small", "zero", "Chinese and a formula"],
)
@pytest.mark.parametrize("base_loss", [None, 2.5])
def test_whatever_there_is_is_drawn(
    entries: list[Entry], lines: int, scale: str, base_loss: float | None, draw: Draw
) -> None:
    """Without a warning: a font without Chinese would give one."""
    axes = draw(entries, base_loss)
    assert len(axes.lines) == lines + (base_loss is not None)
    assert {line.get_color() for line in axes.lines} - {"#999999"} == {LORA}
    assert axes.get_yscale() == scale


def test_a_loss_beyond_all_bounds_is_no_obstacle(draw: Draw) -> None:
    wild = entry(1, [0.5, 0.4])
    wild.training_losses.append((900, 1e30))
    axes = draw([wild], math.nan)
    ((_, smooth),) = drawn(axes, "None")
    weight = 0.2 / (1 - 0.8 ** len(wild.training_losses))
    assert smooth[-1] == (900, pytest.approx(weight * 1e30))
    assert drawn(axes, "o") == [(LORA, [(800, 0.5), (1600, 0.4)])]
    assert axes.get_yscale() == "log"
