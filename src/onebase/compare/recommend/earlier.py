"""Which of a workspace's comparisons a recommendation rests on: the newest, and earlier ones that are like it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebase.compare.result import Comparison
from onebase.language import say
from onebase.quantity import listed


@dataclass(frozen=True)
class Joined:
    """The newest comparison of a task, with the methods that it lacks from earlier ones on the same rows.
    `notes` name the earlier comparisons that have more methods and could not join, and why.
    """

    comparison: Comparison
    notes: tuple[str, ...]


def joined(comparisons: Sequence[Comparison]) -> Joined:
    """The comparisons of one task as one; at least one, newest last."""
    *earlier, newest = comparisons
    notes = []
    for other in reversed(earlier):
        there = newest.methods
        more = [arm for arm in other.arms if arm.trained and arm.method not in there]
        if not more:
            continue
        difference = _difference(other, newest)
        if difference is None:
            newest = replace(newest, arms=(*newest.arms, *more))
            continue
        names = listed(dict.fromkeys(arm.method for arm in more))
        notes.append(
            say(
                f"Run {other.run} also compared {names}, but {difference}; it is left out.",
                f"运行 {other.run} 还对比过 {names}，但{difference}，因此未采用。",
            )
        )
    return Joined(newest, tuple(notes))


def _difference(earlier: Comparison, newest: Comparison) -> str | None:
    """Why two comparisons cannot be joined; None if they can."""
    if earlier.base != newest.base:
        return say(
            f"on the base {earlier.base}, not {newest.base}",
            f"基座是 {earlier.base}，不是 {newest.base}",
        )
    rows = [[(row.input, row.reference) for row in item.held_out] for item in (earlier, newest)]
    if earlier.rows_sha256 != newest.rows_sha256 or rows[0] != rows[1]:
        return say("on other rows", "所用数据行不同")
    if newest.metric != "loss" and newest.metric not in earlier.metrics:
        return say(f"it did not measure {newest.metric}", f"没有测量 {newest.metric}")
    if earlier.settings != newest.settings:
        names = {
            "defaults": say("default settings", "默认设置"),
            "given": say("given settings", "指定的设置"),
            "tuned": say("tuned settings", "调优后的设置"),
        }
        return say(f"with {names[earlier.settings]}", f"用的是{names[earlier.settings]}")
    if other_machine(earlier.machine, newest.machine):
        return say("on another machine", "在另一台机器上")
    return None


def other_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What tells two machines apart, as far as both are described."""
    return [key for key in one if key in other and one[key] != other[key]]
