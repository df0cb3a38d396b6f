"""What a method costs alone: each kind of cost, and the cheapest of several methods by it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onebase.compare.result import Arm
from onebase.language import say
from onebase.quantity import duration, size

CostName = Literal[
    "peak_memory_bytes", "seconds", "adapter_bytes", "load_seconds", "tokens_per_second"
]
_NOISE = 0.1  # a training alone that is measured again takes up to this share more or less


@dataclass(frozen=True)
class CostKind:
    """One kind of cost: its name and its superlative, each in English and in Chinese; how an arm's is
    read (None: not measured) and shown. Two values that differ by a share of at most `noise` are equal.
    """

    name: tuple[str, str]
    superlative: tuple[str, str]
    of: Callable[[Arm], float | None]
    text: Callable[[float], str]
    more_is_better: bool = False
    noise: float = _NOISE

    def worst(self, values: Iterable[float]) -> float:
        """The value that can be promised of those that several seeds measured."""
        return (min if self.more_is_better else max)(values)

    def cheaper(self, one: float, other: float) -> bool:
        """Whether `one` is cheaper, by more than the noise."""
        smaller, larger = (other, one) if self.more_is_better else (one, other)
        return smaller * (1 + self.noise) < larger

    def cheapest(self, values: Mapping[str, float]) -> list[str]:
        """The methods that no other is cheaper than."""
        best = (max if self.more_is_better else min)(values.values())
        return [method for method, value in values.items() if not self.cheaper(best, value)]


def _speed(tokens: float) -> str:
    return say(f"{tokens:.0f} tokens/s", f"每秒 {tokens:.0f} 个词元")


COSTS: dict[CostName, CostKind] = {
    "peak_memory_bytes": CostKind(
        name=("peak memory", "峰值内存"),
        superlative=("the lowest peak memory", "峰值内存最低"),
        of=lambda arm: arm.cost.peak_memory_bytes if arm.cost else None,
        text=size,
    ),
    "seconds": CostKind(
        name=("training time", "训练时间"),
        superlative=("the shortest training", "训练最快"),
        of=lambda arm: arm.cost.seconds if arm.cost else None,
        text=duration,
    ),
    "adapter_bytes": CostKind(
        name=("adapter size", "适配器大小"),
        superlative=("the smallest adapter", "适配器最小"),
        of=lambda arm: arm.adapter_bytes or None,
        text=size,
        noise=0.0,
    ),
    "load_seconds": CostKind(
        name=("load time", "加载时间"),
        superlative=("the shortest load time", "加载最快"),
        of=lambda arm: arm.load_seconds,
        text=duration,
    ),
    "tokens_per_second": CostKind(
        name=("speed of answering", "回答速度"),
        superlative=("the fastest answers", "回答最快"),
        of=lambda arm: arm.tokens_per_second,
        text=_speed,
        more_is_better=True,
    ),
}


def costs_of(arms: Iterable[Arm]) -> dict[CostName, float]:
    """The costs of a method that were measured, each at its worst over the seeds."""
    every = list(arms)
    found: dict[CostName, float] = {}
    for name, kind in COSTS.items():
        values = [value for arm in every if (value := kind.of(arm)) is not None]
        if values:
            found[name] = kind.worst(values)
    return found


def pareto(costs: Mapping[str, Mapping[CostName, float]], names: Iterable[CostName]) -> list[str]:
    """The methods that no other is at least as cheap as in all of these costs and cheaper in one. A
    cost that was not measured counts as the worst.
    """
    kinds = list(names)
    points = {
        method: tuple(_loss_of(kind, measured) for kind in kinds)
        for method, measured in costs.items()
    }
    return [
        method
        for method, point in points.items()
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points.values()
        )
    ]


def times_undercut(
    method: str, costs: Mapping[str, Mapping[CostName, float]], names: Iterable[CostName]
) -> int:
    """How often another method is cheaper by more than the noise, counted over all of these costs."""
    return sum(
        other != method and _undercuts(COSTS[name], measured.get(name), costs[method].get(name))
        for name in names
        for other, measured in costs.items()
    )


def _undercuts(kind: CostKind, one: float | None, other: float | None) -> bool:
    return one is not None and (other is None or kind.cheaper(one, other))


def _loss_of(name: CostName, measured: Mapping[CostName, float]) -> float:
    """A cost as a number of which less is better."""
    if name not in measured:
        return float("inf")
    return -measured[name] if COSTS[name].more_is_better else measured[name]
