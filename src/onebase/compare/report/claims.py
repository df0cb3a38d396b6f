"""The claims of the usual tutorials about the methods, held against what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from onebase.compare.evidence import Evidence
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.metrics.metric_name import metric_name
from onebase.language import say
from onebase.quantity import (
    duration,
    interval,
    listed,
    p_value,
    percent,
    signed,
    size,
)

Result = Literal["held", "not held", "not decided"]
# Costs that differ by less say nothing: a process's own memory and time vary by about as much.
_MARGIN = 0.1
_FEW_MB = 10e6  # bytes
_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """Whether a claim held, and the numbers that say so, in the current language."""

    result: Result
    numbers: str


@dataclass(frozen=True)
class Quantity:
    """A cost of a method and how it is printed."""

    value: Callable[[MeasuredMethod], float | None]
    text: Callable[[float], str]


@dataclass(frozen=True)
class Claim:
    """A claim as tutorials make it, and how it is read here, where its words leave that open; in
    English and Chinese.
    """

    text: tuple[str, str]
    reading: tuple[str, str]
    test: Callable[[Evidence], Finding]


MEMORY = Quantity(lambda method: method.peak_memory_bytes, size)
TIME = Quantity(lambda method: method.seconds, duration)
ADAPTER = Quantity(lambda method: method.adapter_bytes, size)
LOADING = Quantity(lambda method: method.load_seconds, duration)


def share(method: str, low: float, high: float) -> Callable[[Evidence], Finding]:
    """That the trainable parameters are between `low` and `high` percent of all."""

    def test(evidence: Evidence) -> Finding:
        if (found := evidence.methods.get(method)) is None:
            return _not_compared(method)
        value = found.trainable_percent
        return Finding(
            "held" if low <= value <= high else "not held",
            f"{percent(value)} ({found.trainable:,})",
        )

    return test


def at_most(method: str, quantity: Quantity, limit: float) -> Callable[[Evidence], Finding]:
    """That a cost of the method is at most `limit`."""

    def test(evidence: Evidence) -> Finding:
        if method not in evidence.methods:
            return _not_compared(method)
        value = quantity.value(evidence.methods[method])
        if value is None:
            return _not_measured(method)
        return Finding("held" if value <= limit else "not held", quantity.text(value))

    return test


def extreme(method: str, quantity: Quantity, *, least: bool) -> Callable[[Evidence], Finding]:
    """That no other trained method has a cost as low (`least`), or as high, as this one."""

    def test(evidence: Evidence) -> Finding:
        costs = _costs(evidence, quantity)
        if method not in evidence.methods:
            return _not_compared(method)
        if (own := costs.pop(method, None)) is None:
            return _not_measured(method)
        if not costs:
            return Finding("not decided", say("no other method was measured", "没有其他方法可比"))
        rival = (min if least else max)(costs, key=lambda name: costs[name])
        low, high = (own, costs[rival]) if least else (costs[rival], own)
        numbers = listed(
            f"{name} {quantity.text(cost)}" for name, cost in ((method, own), (rival, costs[rival]))
        )
        return Finding(_below(low, high), numbers)

    return test


def ordered(*methods: str, quantity: Quantity) -> Callable[[Evidence], Finding]:
    """That each of the methods costs less than the next."""

    def test(evidence: Evidence) -> Finding:
        costs = _costs(evidence, quantity)
        for name in methods:
            if name not in evidence.methods:
                return _not_compared(name)
            if name not in costs:
                return _not_measured(name)
        results = [_below(costs[low], costs[high]) for low, high in pairwise(methods)]
        numbers = " < ".join if all(result == "held" for result in results) else listed
        return Finding(
            _all(results), numbers(f"{name} {quantity.text(costs[name])}" for name in methods)
        )

    return test


def medium_quality(method: str, lower: str, upper: str) -> Callable[[Evidence], Finding]:
    """That the method is better than `lower`, and not better than `upper`."""

    def test(evidence: Evidence) -> Finding:
        for name in (method, lower, upper):
            if name not in evidence.summary.intervals:
                return _not_compared(name)
        above, beyond = evidence.beats(method, lower), evidence.beats(method, upper)
        numbers = say("; ", "；").join(
            _difference(evidence, method, other) for other in (lower, upper)
        )
        if above is False or beyond is True:
            return Finding("not held", numbers)
        return Finding("held" if above else "not decided", numbers)

    return test


def best_quality(method: str) -> Callable[[Evidence], Finding]:
    """That the method is better than every other trained method."""

    def test(evidence: Evidence) -> Finding:
        if method not in evidence.summary.intervals:
            return _not_compared(method)
        others = [name for name in evidence.trained if name != method]
        if not others:
            return Finding("not decided", say("no other method was measured", "没有其他方法可比"))
        beaten = {name: evidence.beats(method, name) for name in others}
        result: Result
        # The others come best first: the first one that the method does not beat says most.
        if False in beaten.values():
            result, rival = "not held", next(name for name in others if beaten[name] is False)
        elif None in beaten.values():
            result, rival = "not decided", next(name for name in others if beaten[name] is None)
        else:
            result, rival = "held", others[0]
        return Finding(result, _difference(evidence, method, rival))

    return test


CLAIMS = (
    Claim(
        ("LoRA trains 0.1–1 % of the parameters", "LoRA 训练 0.1–1 % 的参数"),
        ("", ""),
        share("lora", 0.1, 1),
    ),
    Claim(
        ("LoRA needs medium memory", "LoRA 内存占用中等"),
        ("more than QLoRA, less than full fine-tuning", "高于 QLoRA，低于全量微调"),
        ordered("qlora", "lora", "full", quantity=MEMORY),
    ),
    Claim(
        ("LoRA has medium to high quality", "LoRA 效果中高"),
        (
            "better than P-tuning, and not shown to be better than full fine-tuning",
            "优于 P-tuning，且未显示优于全量微调",
        ),
        medium_quality("lora", "p-tuning", "full"),
    ),
    Claim(
        ("QLoRA needs little memory", "QLoRA 内存占用低"),
        ("less than LoRA", "低于 LoRA"),
        ordered("qlora", "lora", quantity=MEMORY),
    ),
    Claim(
        ("P-tuning trains 0.01–0.1 % of the parameters", "P-tuning 训练 0.01–0.1 % 的参数"),
        ("", ""),
        share("p-tuning", 0.01, 0.1),
    ),
    Claim(
        ("P-tuning is the fastest", "P-tuning 训练最快"),
        ("the least training time", "训练时间最短"),
        extreme("p-tuning", TIME, least=True),
    ),
    Claim(
        ("P-tuning needs the least memory", "P-tuning 内存占用最低"),
        ("the least peak memory", "峰值内存最低"),
        extreme("p-tuning", MEMORY, least=True),
    ),
    Claim(
        ("P-tuning adapters have a few MB", "P-tuning 的适配器只有几 MB"),
        ("at most 10 MB", "不超过 10 MB"),
        at_most("p-tuning", ADAPTER, _FEW_MB),
    ),
    Claim(
        ("P-tuning switches tasks in seconds", "P-tuning 几秒内即可切换任务"),
        ("an adapter is loaded in at most 10 s", "加载一个适配器不超过 10 秒"),
        at_most("p-tuning", LOADING, _SECONDS),
    ),
    Claim(
        ("Full fine-tuning trains 100 % of the parameters", "全量微调训练 100 % 的参数"),
        ("", ""),
        share("full", 100, 100),
    ),
    Claim(
        ("Full fine-tuning is the slowest", "全量微调训练最慢"),
        ("the most training time", "训练时间最长"),
        extreme("full", TIME, least=False),
    ),
    Claim(
        ("Full fine-tuning has the best quality", "全量微调效果最好"),
        ("better than every other method", "优于其他所有方法"),
        best_quality("full"),
    ),
)


def _costs(evidence: Evidence, quantity: Quantity) -> dict[str, float]:
    """The cost of each trained method that was measured."""
    return {
        name: value
        for name, method in evidence.methods.items()
        if method.trained and (value := quantity.value(method)) is not None
    }


def _below(low: float, high: float) -> Result:
    """Whether a cost is below another by more than the margin of a measurement."""
    if high - low >= _MARGIN * low:
        return "held"
    return "not held" if low - high >= _MARGIN * high else "not decided"


def _all(results: list[Result]) -> Result:
    if "not held" in results:
        return "not held"
    return "not decided" if "not decided" in results else "held"


def _difference(evidence: Evidence, one: str, other: str) -> str:
    """`lora − full: accuracy +0.021 [−0.010, +0.052], p (Holm) 0.310`."""
    pair = evidence.summary.verdict.pair(one, other)
    places = max(3, evidence.places)
    shown = interval(pair.low, pair.high, places, sign=True)
    return (
        f"{one} − {other}: {metric_name(evidence.metric)} {signed(pair.difference, places)} {shown}, "
        f"p (Holm) {p_value(pair.p_holm)}"
    )


def _not_compared(method: str) -> Finding:
    return Finding("not decided", say(f"{method} was not compared", f"未对比 {method}"))


def _not_measured(method: str) -> Finding:
    return Finding("not decided", say(f"not measured for {method}", f"{method} 没有该项测量"))
