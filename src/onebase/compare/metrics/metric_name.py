"""The metrics and the languages of neutral text as people name them."""

from onebase.compare.metrics.metric import METRICS
from onebase.compare.statistics.verdict import Direction
from onebase.language import say

_TONGUES = {"en": ("English", "英文"), "zh": ("Chinese", "中文")}


def metric_name(metric: str) -> str:
    """The metric in the current language; a metric of the user's as it was given."""
    known = METRICS.get(metric)
    return say(*known.title) if known else metric


def metric_in_chinese(metric: str) -> str:
    """The metric inside a Chinese sentence: Latin letters stand between spaces."""
    name = metric_name(metric)
    return f"{' ' if name[0].isascii() else ''}{name}{' ' if name[-1].isascii() else ''}"


def direction_note(direction: Direction) -> str:
    """Which values of the metric are better, in brackets."""
    if direction == "neutral":
        return ""
    if direction == "lower":
        return say(" (lower is better)", "（越低越好）")
    return say(" (higher is better)", "（越高越好）")


def tongue_name(code: str) -> str:
    """The language of a neutral text."""
    names = _TONGUES.get(code)
    return say(*names) if names else code
