"""The plots of a comparison, each with its content in words."""

import math
from collections.abc import Callable, Iterable

from onebase.compare.evidence import Evidence, front
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.metrics.metric_name import direction_note, metric_in_chinese, metric_name
from onebase.compare.report.document import Block, Paragraph, Plot, Section
from onebase.compare.report.plots import Line, Point, cost_plot, curve_plot, short
from onebase.compare.result import BASE, EXAMPLES, Arm, CurvePoint
from onebase.language import say
from onebase.quantity import duration, listed, number, size

_SMOOTH = 0.8


def plots_section(evidence: Evidence) -> Section:
    """Quality against memory, time and trainable parameters; losses over tokens of training."""
    plots = [
        _against(
            evidence,
            "memory",
            say("Quality against memory", "质量与内存"),
            say("peak memory", "峰值内存"),
            lambda method: method.peak_memory_bytes,
            size,
        ),
        _against(
            evidence,
            "time",
            say("Quality against training time", "质量与训练时间"),
            say("training time", "训练时间"),
            lambda method: method.seconds,
            duration,
        ),
        _against(
            evidence,
            "parameters",
            say("Quality against trainable parameters", "质量与可训练参数"),
            say("trainable parameters", "可训练参数"),
            lambda method: method.trainable or None,
            short,
        ),
        _curves(
            evidence,
            "validation",
            say("Quality over tokens of training", "质量随训练词元的变化"),
            say("validation loss, nats per token", "验证损失（nat/词元）"),
            lambda arm: arm.curve,
        ),
        _curves(
            evidence,
            "training",
            say("Training loss (smoothed)", "训练损失（平滑后）"),
            say("training loss, nats per token", "训练损失（nat/词元）"),
            lambda arm: arm.training_losses,
            smooth=_SMOOTH,
        ),
    ]
    shown: list[Block] = [plot for plot in plots if plot is not None]
    if any(isinstance(plot, Plot) and plot.name == "memory" for plot in shown):
        shown.insert(
            0,
            Paragraph(
                say(
                    "Bars are 95 % intervals over rows. Filled marks are the tied set. The line is the "
                    "Pareto front: no other method is both as good and as cheap.",
                    "竖线为留出数据上的 95 % 区间；实心标记为并列组；连线为帕累托前沿，即没有其他方法同时"
                    "做到同样好又同样省。",
                )
            ),
        )
    return Section("plots", say("Plots", "图"), _lead(evidence), tuple(shown))


def _lead(evidence: Evidence) -> str:
    points = {
        point.name: (point.cost, point.mean)
        for point in _points(evidence, lambda method: method.peak_memory_bytes)
    }
    best = front(points, lower_is_better=evidence.lower_is_better)
    if not best or evidence.summary.direction == "neutral":
        return say("The curves of every method that was trained.", "各训练方法的曲线。")
    names = listed(best)
    return say(
        f"For quality against memory, the Pareto front is {names}, the cheapest first.",
        f"质量与内存的帕累托前沿（按成本从低到高）：{names}。",
    )


def _points(evidence: Evidence, cost: Callable[[MeasuredMethod], float | None]) -> list[Point]:
    points = []
    for name in evidence.trained:
        value = cost(evidence.methods[name])
        if value is not None:
            found = evidence.summary.intervals[name]
            tied = bool(evidence.standing(name))
            points.append(Point(name, value, found.mean, found.low, found.high, tied))
    return points


def _against(
    evidence: Evidence,
    name: str,
    title: str,
    cost_label: str,
    cost: Callable[[MeasuredMethod], float | None],
    text: Callable[[float], str],
) -> Plot | None:
    points = _points(evidence, cost)
    if not points:
        return None
    metric = evidence.metric
    best = (
        []
        if evidence.summary.direction == "neutral"
        else front(
            {point.name: (point.cost, point.mean) for point in points},
            lower_is_better=evidence.lower_is_better,
        )
    )
    label = metric_name(metric) + direction_note(evidence.summary.direction)
    svg = cost_plot(
        points,
        best,
        {name: evidence.mean(name) for name in evidence.references},
        lower_is_better=evidence.lower_is_better,
        colour_of=_colours(evidence),
        cost_label=cost_label,
        metric_label=label,
        tied_label=say("tied set", "并列组"),
        front_label=say("Pareto front", "帕累托前沿"),
        cost_text=text,
    )
    values = "; ".join(
        f"{point.name} {text(point.cost)}, {number(point.mean, evidence.places)}"
        for point in sorted(points, key=lambda point: point.cost)
    )
    alt = say(
        f"{title}. Each method with its {cost_label} and {metric_name(metric)}: {values}. "
        f"Pareto front: {listed(best)}.",
        f"{title}。各方法的{cost_label}与{metric_in_chinese(metric).rstrip()}：{values}。帕累托前沿：{listed(best)}。",
    )
    return Plot(name, title, alt, svg)


def _curves(
    evidence: Evidence,
    name: str,
    title: str,
    loss_label: str,
    points: Callable[[Arm], Iterable[CurvePoint]],
    smooth: float = 0.0,
) -> Plot | None:
    lines = []
    for arm in evidence.comparison.arms:
        known = [point for point in points(arm) if math.isfinite(point.loss)]
        if known:
            tokens = [point.tokens for point in known]
            lines.append(Line(arm.method, tokens, [point.loss for point in known]))
    if not lines:
        return None
    svg = curve_plot(
        lines,
        colour_of=_colours(evidence),
        tokens_label=say("tokens of training", "训练词元数"),
        loss_label=loss_label,
        smooth=smooth,
    )
    ends: dict[str, list[float]] = {}
    for line in lines:
        ends.setdefault(line.name, []).append(line.losses[-1])
    values = "; ".join(
        f"{method} {number(sum(losses) / len(losses))}"
        for method, losses in sorted(ends.items(), key=lambda item: sum(item[1]) / len(item[1]))
    )
    alt = say(
        f"{title}, a line for each seed. Last loss of each method: {values}.",
        f"{title}，每个种子一条线。各方法最后的损失：{values}。",
    )
    return Plot(name, title, alt, svg)


def _colours(evidence: Evidence) -> dict[str, int]:
    """A place in the colours for each trained method, the same in all plots."""
    names = [name for name in evidence.methods if name not in (BASE, EXAMPLES)]
    return {name: index for index, name in enumerate(names)}
