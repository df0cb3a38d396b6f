"""Plots as SVG: quality against a cost with the Pareto front, and losses over tokens of training.

Words stay text, drawn in the reader's own fonts: so Chinese needs no font here, and a screen reader can
read them.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# No pair differs in red and green alone (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_LINES = ("-", "--", "-.", ":")
_FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'PingFang SC', 'Microsoft YaHei', "
    "'Noto Sans CJK SC', 'Noto Sans SC', 'DejaVu Sans', sans-serif"
)
_SIZE = (5.6, 3.9)  # inches
_INK, _GREY, _RULE = "#1f2328", "#656d76", "#d8dee4"
_WIDE = 10.0  # a logarithmic axis where the largest value is this many times the smallest
_FAR = 24  # points: a name that far from its point is joined to it
# Where a name may stand: points to the right of its point and above it.
_OFFSETS = tuple(
    (dx, dy)
    for dx in (8, -8, 0, 26, -26, 44, -44, 66, -66)
    for dy in (4, -12, 14, -22, 28, -36, 42, -50)
    if dx or abs(dy) > 12
)


@dataclass(frozen=True)
class Point:
    """A method in a plot of quality against cost."""

    name: str
    cost: float
    mean: float
    low: float
    high: float
    tied: bool


@dataclass(frozen=True)
class Line:
    """A curve of one seed of a method."""

    name: str
    tokens: Sequence[int]
    losses: Sequence[float]


def cost_plot(
    points: Sequence[Point],
    front: Sequence[str],
    references: Mapping[str, float],
    *,
    lower_is_better: bool,
    colour_of: Mapping[str, int],
    cost_label: str,
    metric_label: str,
    tied_label: str,
    front_label: str,
    cost_text: Callable[[float], str],
) -> str:
    """Quality with its intervals against a cost, the better quality above. Methods of the tied set are
    filled; the line joins the Pareto `front`; `references` are values with no cost.
    """
    with _figure() as (figure, axes):
        for point in points:
            at = colour_of[point.name]
            colour = _COLOURS[at % len(_COLOURS)]
            low = point.low if math.isfinite(point.low) else point.mean
            high = point.high if math.isfinite(point.high) else point.mean
            axes.errorbar(
                [point.cost],
                [point.mean],
                yerr=[[point.mean - low], [high - point.mean]],
                color=colour,
                marker=_MARKERS[at % len(_MARKERS)],
                markersize=8,
                markerfacecolor=colour if point.tied else "white",
                markeredgewidth=1.6,
                elinewidth=1.2,
                capsize=3,
                zorder=4,
            )
        by_name = {point.name: point for point in points}
        axes.plot(
            [by_name[name].cost for name in front],
            [by_name[name].mean for name in front],
            color=_GREY,
            linewidth=1,
            zorder=2,
        )
        costs = [point.cost for point in points]
        if min(costs) > 0 and max(costs) > _WIDE * min(costs):
            axes.set_xscale("log")
        axes.margins(x=0.18, y=0.1)
        _references(axes, references)
        if lower_is_better:
            axes.invert_yaxis()
        _cost_axis(axes, cost_text)
        axes.set_xlabel(cost_label)
        axes.set_ylabel(metric_label)
        handles = [_handle(tied_label, marker="o", linestyle="", markersize=7)]
        if len(front) > 1:
            handles.append(_handle(front_label, linewidth=1))
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        figure.get_layout_engine().execute(figure)  # names are placed in pixels
        _name_points(axes, points, colour_of)
        return _svg(figure)


def curve_plot(
    lines: Sequence[Line],
    *,
    colour_of: Mapping[str, int],
    tokens_label: str,
    loss_label: str,
    reference: tuple[str, float] | None = None,
    smooth: float = 0.0,
) -> str:
    """Losses over tokens of training: a line for each seed, a colour for each method. `smooth` is the
    weight of the past in an exponential mean.
    """
    with _figure() as (figure, axes):
        shown: list[float] = []
        for line in lines:
            at = colour_of[line.name]
            losses = _smoothed(line.losses, smooth)
            shown += [loss for loss in losses if math.isfinite(loss)]
            axes.plot(
                line.tokens,
                losses,
                color=_COLOURS[at % len(_COLOURS)],
                linestyle=_LINES[at % len(_LINES)],
                linewidth=1.3,
                alpha=0.85,
                marker=None if smooth else _MARKERS[at % len(_MARKERS)],
                markersize=4,
            )
        if reference is not None:
            shown.append(reference[1])
            _references(axes, dict([reference]))
        if shown and min(shown) > 0 and max(shown) > _WIDE * min(shown):
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, "{:g}".format)
        axes.xaxis.set_major_formatter(short)
        axes.set_xlabel(tokens_label)
        axes.set_ylabel(loss_label)
        names = dict.fromkeys(line.name for line in lines)
        handles = [
            _handle(
                name,
                color=_COLOURS[colour_of[name] % len(_COLOURS)],
                linestyle=_LINES[colour_of[name] % len(_LINES)],
                marker=None if smooth else _MARKERS[colour_of[name] % len(_MARKERS)],
                markersize=5,
            )
            for name in names
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return _svg(figure)


def short(value: float, _: object = None) -> str:
    """A count on an axis: `20k`, `1.5M`."""
    for count, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= count:
            return f"{value / count:.3g}{unit}"
    return f"{value:.3g}"


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    """An empty figure with its axes, and the settings under which it is written."""
    # Late: it takes half a second, and only a report needs it.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with (
        mpl.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "onebase",
                "text.parse_math": False,
                "font.family": ["DejaVu Sans"],
                "font.size": 10,
                "axes.edgecolor": _GREY,
                "axes.labelcolor": _INK,
                "xtick.color": _GREY,
                "ytick.color": _GREY,
                "text.color": _INK,
            }
        ),
        warnings.catch_warnings(),
    ):
        # Words are measured in a font that may not have them; the reader's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=False, metadata={"Date": None, "Creator": None}
    )
    text = stream.getvalue()
    # The reader's fonts stand before the one that measured the words.
    return text[text.index("<svg") :].replace("'DejaVu Sans'", _FONTS)


def _references(axes: Any, references: Mapping[str, float]) -> None:
    for index, (name, value) in enumerate(references.items()):
        axes.axhline(value, color=_GREY, linestyle=("--", ":")[index % 2], linewidth=1, zorder=1)
        axes.annotate(
            name,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(0, 3),
            ha="right",
            fontsize=9,
            color=_GREY,
        )


def _cost_axis(axes: Any, text: Callable[[float], str]) -> None:
    if axes.get_xscale() == "log":
        _plain_ticks(axes.xaxis, text)
        return
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: "" if value < 0 else text(value))


def _plain_ticks(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis: powers of ten, and within a few of them 2 and 5 as well."""
    low, high = sorted(axis.get_view_interval())
    narrow = high < 200 * low
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(
        lambda value, _: text(value) if narrow and _leading_digit(value) in (2, 5) else ""
    )


def _leading_digit(value: float) -> int:
    return round(value / 10 ** math.floor(math.log10(value))) if value > 0 else 0


def _name_points(axes: Any, points: Sequence[Point], colour_of: Mapping[str, int]) -> None:
    """Write each name near its point, where it covers no other name, no point and no interval."""
    places = {point.name: axes.transData.transform((point.cost, point.mean)) for point in points}
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    for point in points:
        ends = [
            axes.transData.transform((point.cost, value))
            for value in (point.low, point.high)
            if math.isfinite(value)
        ]
        if len(ends) == 2:
            (x, one), (_, other) = ends
            taken.append((x - 3, min(one, other), x + 3, max(one, other)))
    for point in points:
        x, y = places[point.name]

        def covered(
            offset: tuple[int, int], x: float = x, y: float = y, point: Point = point
        ) -> float:
            box = _box(x, y, offset, point.name)
            frame = axes.bbox
            outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1)
            outside += max(0.0, frame.y0 - box[1]) + max(0.0, box[3] - frame.y1)
            overlap = sum(_overlap(box, other) for other in taken)
            cover: float = overlap + 20 * outside + math.hypot(*offset)
            return cover

        offset = min(_OFFSETS, key=covered)
        taken.append(_box(x, y, offset, point.name))
        colour = _COLOURS[colour_of[point.name] % len(_COLOURS)]
        far = math.hypot(*offset) > _FAR
        axes.annotate(
            point.name,
            (point.cost, point.mean),
            textcoords="offset points",
            xytext=offset,
            ha="left" if offset[0] > 0 else "right" if offset[0] < 0 else "center",
            fontsize=9.5,
            fontweight="bold" if point.tied else "normal",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6} if far else None,
            zorder=5,
        )


def _box(
    x: float, y: float, offset: tuple[int, int], text: str
) -> tuple[float, float, float, float]:
    """The place of a name, in pixels: a figure has 100 to an inch, a point is 1/72 inch."""
    scale = 100 / 72
    width, height = 6.2 * scale * len(text), 10 * scale
    dx, dy = offset[0] * scale, offset[1] * scale
    left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
    return left, y + dy - 2, left + width, y + dy + height


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _handle(label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"color": _GREY, **style})


def _smoothed(losses: Sequence[float], weight: float) -> list[float]:
    """Exponential smoothing with bias correction, as of Adam's moments; as they are with weight 0."""
    values = []
    mean, total = 0.0, 0.0
    for loss in losses:
        mean = weight * mean + (1 - weight) * loss
        total = weight * total + (1 - weight)
        values.append(mean / total)
    return values
