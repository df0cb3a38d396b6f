"""The ladder of a race: how far each configuration came and how well it did, as table and plot."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import write_whole
from onebase.search.space import Configuration

# One colour a method, in the order in which they appear: distinct without red and green alone.
_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000"),
)
_SMOOTH = 0.8
_NAMED = 6
_WIDE = 10.0  # from so many times the least loss on, the axis is logarithmic


@dataclass(frozen=True)
class Judged:
    """A held-out loss (nats a label): at a rung, counted from 1, or None at the end of an epoch;
    after how many steps and tokens learned from; over how many rows.
    """

    rung: int | None
    step: int
    tokens: int
    loss: float
    rows: int


@dataclass(frozen=True)
class Left:
    """At which rung a configuration left, and why: pruned, exploded, not finite, stopped with the
    whole race, or, beyond the last rung, outdone by another finalist.
    """

    rung: int
    reason: str


@dataclass
class Place:
    """One configuration on the ladder; `trained` has its training loss after so many tokens."""

    configuration: Configuration
    judged: list[Judged] = field(default_factory=list)
    trained: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    left: Left | None = None

    @property
    def rungs(self) -> list[float]:
        """Its losses at the rungs that it came to."""
        return [item.loss for item in self.judged if item.rung is not None]

    @property
    def loss(self) -> float:
        """Its least loss from the last rung that it came to on."""
        for at in range(len(self.judged) - 1, -1, -1):
            if self.judged[at].rung is not None:
                return min(item.loss for item in self.judged[at:])
        return math.inf

    def as_row(self, rank: int) -> dict[str, Any]:
        """The place in plain values."""
        configuration = self.configuration
        return {
            "rank": rank,
            "number": configuration.number,
            "method": configuration.method,
            "settings": dict(configuration.settings),
            "losses": [asdict(item) for item in self.judged],
            "step": self.step,
            "tokens": self.tokens,
            "left": None if self.left is None else asdict(self.left),
        }


def ranked(places: Sequence[Place]) -> list[Place]:
    """Best first: who came further, then who did better there, then the lower number. Who has not
    left stands before all who have.
    """

    def order(place: Place) -> tuple[bool, int, int, float, int]:
        left = place.left.rung if place.left else 0
        number = place.configuration.number
        return place.left is not None, -len(place.rungs), -left, place.loss, number

    return sorted(places, key=order)


def write_ladder(file: Path, places: Sequence[Place], **race: Any) -> None:
    """The whole ladder as JSON, beside what the `race` was."""
    rows = [place.as_row(rank) for rank, place in enumerate(places, start=1)]
    value = {**race, "ladder": rows}
    write_whole(file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def draw_ladder(file: Path, places: Sequence[Place], base_loss: float | None) -> None:
    """The losses against the tokens learned from, as a PNG; `places` best first.

    Thin lines are training losses, smoothed; points are held-out losses, a cross where a
    configuration left.
    """
    # Half a second to import, and only this needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    methods = list(dict.fromkeys(p.configuration.method for p in by_number(places)))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(methods)}
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rank, place in reversed(list(enumerate(places, start=1))):
        winner = rank == 1
        colour = colours[place.configuration.method]
        if place.trained:
            axes.plot(*_smoothed(place.trained), color=colour, alpha=0.35, linewidth=0.8)
        if place.judged:
            judged = sorted(place.judged, key=lambda item: item.tokens)
            axes.plot(
                [item.tokens for item in judged],
                [item.loss for item in judged],
                color=colour,
                marker="o",
                markersize=6 if winner else 4,
                linewidth=2.8 if winner else 1.2,
                zorder=4 if winner else 3,
            )
        end = _end(place)
        if end is None:
            continue
        if place.left is not None:
            axes.plot(*end, color=colour, marker="x", markersize=7, zorder=5)
        if rank <= _NAMED:
            axes.annotate(
                str(place.configuration.number),
                end,
                textcoords="offset points",
                xytext=(7, -3),
                color=colour,
                fontweight="bold" if winner else "normal",
            )
    if base_loss is not None:
        axes.axhline(base_loss, color="#999999", linestyle=":", linewidth=1)
        axes.annotate(
            "bare base",
            (0.995, base_loss),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(0, 3),
            ha="right",
            fontsize="small",
            color="#777777",
        )
    shown = [end for place in places if (end := _end(place))]
    losses = [loss for place in places for _, loss in place.trained] + [loss for _, loss in shown]
    if shown:
        axes.set_xscale("log")
    if losses and min(losses) > 0 and max(losses) > _WIDE * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _few(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: _few(value, _short)))
    axes.set_xlabel("tokens learned from")
    axes.set_ylabel("loss, nats a label (points: held-out; thin lines: training)")
    axes.grid(visible=True, which="major", alpha=0.25)
    handles = [Line2D([], [], color=colours[name], marker="o", label=name) for name in methods]
    handles.append(Line2D([], [], color="#555555", marker="x", linestyle="", label="left the race"))
    axes.legend(handles=handles, fontsize="small", loc="best")
    # Fonts at hand may have Latin letters only, and a $ would start a formula.
    title = f"{len(places)} configurations; winner: {places[0].configuration.number} "
    title += places[0].configuration.text.encode("ascii", "replace").decode()
    axes.set_title(title.replace("$", r"\$"), fontsize="medium", wrap=True)
    figure.savefig(file, format="png")


def by_number(places: Sequence[Place]) -> list[Place]:
    """In the order in which they were entered."""
    return sorted(places, key=lambda place: place.configuration.number)


def _end(place: Place) -> tuple[float, float] | None:
    """Where a configuration's line ends."""
    if place.judged:
        return place.judged[-1].tokens, place.judged[-1].loss
    return place.trained[-1] if place.trained else None


def _smoothed(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Exponentially, corrected for its start as Adam's moments are."""
    at, values = [], []
    mean, weight = 0.0, 0.0
    for tokens, loss in points:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        at.append(tokens)
        values.append(mean / weight)
    return at, values


def _short(value: float) -> str:
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _few(value: float, text: Callable[[float], str] = "{:g}".format) -> str:
    """Minor ticks of a logarithmic axis: 2 and 5 alone have a label."""
    digit = round(value / 10 ** math.floor(math.log10(value))) if value > 0 else 0
    return text(value) if digit in (2, 5) else ""
