"""The leaderboard of a race: the progress and the losses of each configuration, as table and plot."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import write_whole
from onebase.search.space import Configuration

# One colour a method, in order of appearance; no pair differs in red and green alone.
_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000"),
)
_SMOOTH = 0.8
_NAMED = 6
_WIDE = 10.0  # the axis is logarithmic where the largest loss is this many times the smallest


@dataclass(frozen=True)
class Evaluation:
    """A held-out `loss` (nats a label) over `rows`, after `step` steps and `tokens` trained on: at a
    `rung`, counted from 1, or at the end of an epoch (None).
    """

    rung: int | None
    step: int
    tokens: int
    loss: float
    rows: int


@dataclass(frozen=True)
class Stop:
    """The rung at which a configuration stopped, and the reason: pruned, exploded, not finite, stopped
    with the whole race, or, after the last rung, outdone by another finalist.
    """

    rung: int
    reason: str


@dataclass
class Entry:
    """One configuration on the leaderboard; `training_losses` are pairs of tokens trained on and loss.
    `continued_from` is the rung at which it had been stopped before it was continued.
    """

    configuration: Configuration
    evaluations: list[Evaluation] = field(default_factory=list)
    training_losses: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    stop: Stop | None = None
    continued_from: int | None = None

    @property
    def rung_losses(self) -> list[float]:
        """Its losses at the rungs that it reached."""
        return [item.loss for item in self.evaluations if item.rung is not None]

    @property
    def loss(self) -> float:
        """Its smallest loss at or after the last rung that it reached."""
        for at in range(len(self.evaluations) - 1, -1, -1):
            if self.evaluations[at].rung is not None:
                return min(item.loss for item in self.evaluations[at:])
        return math.inf

    def begin_again(self) -> None:
        """Forget a training that is repeated from its first step."""
        self.evaluations.clear()
        self.training_losses.clear()
        self.step = self.tokens = 0

    def as_row(self, rank: int) -> dict[str, Any]:
        """The entry in plain values."""
        configuration = self.configuration
        return {
            "rank": rank,
            "number": configuration.number,
            "method": configuration.method,
            "settings": dict(configuration.settings),
            "losses": [asdict(item) for item in self.evaluations],
            "step": self.step,
            "tokens": self.tokens,
            "left": None if self.stop is None else asdict(self.stop),
            "continued_from": self.continued_from,
        }


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Best first: the entries that have not stopped, then those that reached a later rung, then those
    with a smaller loss there, then the lower number.
    """

    def order(entry: Entry) -> tuple[bool, int, int, float, int]:
        stop_rung = entry.stop.rung if entry.stop else 0
        number = entry.configuration.number
        return entry.stop is not None, -len(entry.rung_losses), -stop_rung, entry.loss, number

    return sorted(entries, key=order)


def plain_leaderboard(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The leaderboard in plain values; `entries` best first."""
    return [entry.as_row(rank) for rank, entry in enumerate(entries, start=1)]


def write_leaderboard(file: Path, entries: Sequence[Entry], **race: Any) -> None:
    """Write the whole leaderboard as JSON, with the facts of the `race`."""
    value = {**race, "ladder": plain_leaderboard(entries)}
    write_whole(file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def draw_leaderboard(file: Path, entries: Sequence[Entry], base_loss: float | None) -> None:
    """Draw the losses against the tokens trained on, as a PNG; `entries` best first.

    Thin lines are smoothed training losses, points are held-out losses; a cross is where a configuration
    stopped.
    """
    # Imported here: it takes half a second, and nothing else needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    configurations = sorted((entry.configuration for entry in entries), key=lambda it: it.number)
    methods = list(dict.fromkeys(item.method for item in configurations))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(methods)}
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rank, entry in reversed(list(enumerate(entries, start=1))):
        winner = rank == 1
        colour = colours[entry.configuration.method]
        if entry.training_losses:
            axes.plot(*_smoothed(entry.training_losses), color=colour, alpha=0.35, linewidth=0.8)
        if entry.evaluations:
            evaluations = sorted(entry.evaluations, key=lambda item: item.tokens)
            axes.plot(
                [item.tokens for item in evaluations],
                [item.loss for item in evaluations],
                color=colour,
                marker="o",
                markersize=6 if winner else 4,
                linewidth=2.8 if winner else 1.2,
                zorder=4 if winner else 3,
            )
        end = _end(entry)
        if end is None:
            continue
        if entry.stop is not None:
            axes.plot(*end, color=colour, marker="x", markersize=7, zorder=5)
        if rank <= _NAMED:
            axes.annotate(
                str(entry.configuration.number),
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
    shown = [end for entry in entries if (end := _end(entry))]
    losses = [loss for entry in entries for _, loss in entry.training_losses] + [
        loss for _, loss in shown
    ]
    if shown:
        axes.set_xscale("log")
    if losses and min(losses) > 0 and max(losses) > _WIDE * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _few(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: _few(value, _short)))
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss, nats a label (points: held-out; thin lines: training)")
    axes.grid(visible=True, which="major", alpha=0.25)
    handles = [Line2D([], [], color=colours[name], marker="o", label=name) for name in methods]
    handles.append(Line2D([], [], color="#555555", marker="x", linestyle="", label="stopped"))
    axes.legend(handles=handles, fontsize="small", loc="best")
    # The fonts installed may have Latin letters only, and a $ would start a formula.
    title = f"{len(entries)} configurations; winner: {entries[0].configuration.number} "
    title += entries[0].configuration.text.encode("ascii", "replace").decode()
    axes.set_title(title.replace("$", r"\$"), fontsize="medium", wrap=True)
    figure.savefig(file, format="png")


def _end(entry: Entry) -> tuple[float, float] | None:
    """Where a configuration's line ends."""
    if entry.evaluations:
        return entry.evaluations[-1].tokens, entry.evaluations[-1].loss
    return entry.training_losses[-1] if entry.training_losses else None


def _smoothed(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Exponential smoothing with bias correction, as of Adam's moments."""
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
