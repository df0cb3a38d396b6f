"""Sizes and counts as people read them."""

from onebase.language import say

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float) -> str:
    """Bytes, with powers of ten: `25.3 GB`, `850 kB`, `12 bytes`."""
    for unit, name in _UNITS:
        if count >= unit:
            number = count / unit
            return f"{number:.0f} {name}" if number >= 100 else f"{number:.1f} {name}"
    return say(f"{count:.0f} bytes", f"{count:.0f} 字节")


def plural(count: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`; thousands are separated."""
    return f"{count:,} {one if count == 1 else many}"


def listed(names: list[str]) -> str:
    """Names with commas between, as the language in force writes them."""
    return say(", ", "、").join(names)


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if seconds < 7200:
        return say(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    return say(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f} 小时")
