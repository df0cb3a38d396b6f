"""What a recommendation is for: the goals and the scenarios, and the order of costs that each stands for."""

from dataclasses import dataclass
from typing import Literal

from onebase.compare.recommend.costs import CostName
from onebase.errors import UsageError, unknown
from onebase.language import say

Pick = Literal["cheapest", "best mean", "balance"]


@dataclass(frozen=True)
class Preference:
    """How one of the methods that the rows cannot tell apart is picked; in English and in Chinese
    what is preferred.

    `cheapest` goes through `costs` in their order: the cheapest by the first, and where several are
    equal within its noise, the cheapest of these by the next, at last the one with the best mean. `best
    mean` takes that at once. `balance` leaves out a method if another is at least as cheap in all of
    `costs` and cheaper in one; it takes the one that is the least often undercut in one of them.
    """

    pick: Pick
    costs: tuple[CostName, ...]
    text: tuple[str, str]


PREFERENCES: dict[str, Preference] = {
    # Goals.
    "quality": Preference(
        "cheapest",
        ("peak_memory_bytes", "seconds", "adapter_bytes"),
        ("quality, then the lowest memory", "质量优先，其次内存最低"),
    ),
    "speed": Preference(
        "cheapest",
        ("seconds", "tokens_per_second", "peak_memory_bytes"),
        ("the shortest training, then the fastest answers", "训练最快，其次回答最快"),
    ),
    "size": Preference(
        "cheapest",
        ("adapter_bytes", "peak_memory_bytes", "seconds"),
        ("the smallest adapter, then the lowest memory", "适配器最小，其次内存最低"),
    ),
    # Scenarios.
    "best-quality": Preference("best mean", (), ("the best mean", "均值最好")),
    "balance": Preference(
        "balance",
        ("peak_memory_bytes", "seconds", "adapter_bytes"),
        (
            "a balance of memory, training time and adapter size",
            "兼顾内存、训练时间与适配器大小",
        ),
    ),
    "little-memory": Preference(
        "cheapest",
        ("peak_memory_bytes", "adapter_bytes", "seconds"),
        ("the lowest memory", "内存最低"),
    ),
    "quick-prototype": Preference(
        "cheapest",
        ("seconds", "peak_memory_bytes"),
        ("the shortest training", "训练最快"),
    ),
    "many-tasks": Preference(
        "cheapest",
        ("adapter_bytes", "load_seconds", "seconds"),
        ("the smallest adapter, then the shortest load time", "适配器最小，其次加载最快"),
    ),
    "production": Preference(
        "cheapest",
        ("tokens_per_second", "load_seconds", "adapter_bytes"),
        ("the fastest answers, then the shortest load time", "回答最快，其次加载最快"),
    ),
    "research": Preference(
        "best mean",
        (),
        ("the best mean, with all methods tied with it", "均值最好，并列出所有并列方法"),
    ),
}
GOALS = ("quality", "speed", "size")
SCENARIOS = tuple(name for name in PREFERENCES if name not in GOALS)


def preference_named(goal: str | None, scenario: str | None) -> str:
    """The name of the preference that a goal or a scenario stands for; `quality` without either.

    Raises UsageError for an unknown name, and where both are given.
    """
    if goal is not None and scenario is not None:
        raise UsageError(
            say("Both --goal and --scenario were given.", "同时给出了 --goal 和 --scenario。"),
            say("Leave one of the two out.", "请去掉其中之一。"),
        )
    if goal is not None and goal not in GOALS:
        raise unknown("goal", "目标", goal, GOALS)
    if scenario is not None and scenario not in SCENARIOS:
        raise unknown("scenario", "场景", scenario, SCENARIOS)
    return goal or scenario or "quality"
