"""Measured quantities as people read them: sizes, times, percentages, differences, p-values."""

import math
from collections.abc import Iterable

from onebase.language import say

MISSING = "–"
_MINUS = "−"
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float) -> str:
    """Bytes, with powers of ten and three digits: `1.45 GB`, `25.3 MB`, `850 kB`, `12 bytes`."""
    for unit, name in _UNITS:
        if count >= unit:
            value = count / unit
            places = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{places}f} {name}"
    return say(f"{count:.0f} bytes", f"{count:.0f} 字节")


def duration(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `205 s`, `12 min`, `3.5 h`."""
    if seconds < 0.9995:
        return say(f"{seconds * 1000:.0f} ms", f"{seconds * 1000:.0f} 毫秒")
    if seconds < 9.95:
        return say(f"{seconds:.1f} s", f"{seconds:.1f} 秒")
    if seconds < 600:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if seconds < 7200:
        return say(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    return say(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f} 小时")


def percent(value: float) -> str:
    """A percentage with two significant digits, and none after 10: `0.034 %`, `2.1 %`, `100 %`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} %"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f} %"


def decimals(values: Iterable[float]) -> int:
    """How many decimals numbers of this size are shown with: 3 under 2, 2 under 20, else 1."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest < 2 else 2 if largest < 20 else 1


def number(value: float | None, places: int = 3) -> str:
    """A number with a fixed count of decimals; a dash where there is none."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    text = f"{abs(value):,.{places}f}"
    return f"{_MINUS}{text}" if value < 0 and float(text.replace(",", "")) else text


def signed(value: float | None, places: int = 3) -> str:
    """A difference, with its sign."""
    text = number(value, places)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.,") else text


def interval(low: float, high: float, places: int = 3, *, sign: bool = False) -> str:
    """An interval in brackets."""
    one = signed if sign else number
    return f"[{one(low, places)}, {one(high, places)}]"


def p_value(value: float) -> str:
    """Three decimals, and `< 0.001` under that."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def listed(names: Iterable[str]) -> str:
    """Names with commas between, separated as in the current language."""
    return say(", ", "、").join(names)


def joined(names: Iterable[str]) -> str:
    """Names as a sentence has them: `full, lora and ia3`."""
    every = list(names)
    if len(every) < 2:
        return "".join(every)
    return say(", ", "、").join(every[:-1]) + say(" and ", " 和 ") + every[-1]


def plural(count: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`; thousands are separated."""
    return f"{count:,} {one if count == 1 else many}"
