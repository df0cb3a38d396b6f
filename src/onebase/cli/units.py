"""Sizes, counts, times and tables as text."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from onebase.errors import UsageError
from onebase.language import say

_LINE = 88  # columns of a long text in a table
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)B?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


def byte_count(option: str, text: str) -> int:
    """The bytes that `500MB` or `1.5GB`, given for an option, names. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            say(f"--{option} {text!r} is not a size.", f"--{option} {text!r} 不是大小。"),
            say("Write it like 500MB or 1.5GB.", "请写成 500MB 或 1.5GB 的形式。"),
        )
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def loss_change(before: float, now: float) -> str:
    """A change of a loss, as `2.000 -> 1.000 (50 % lower)`; without the percentage if `before` is 0."""
    text = f"{before:.3f} -> {now:.3f}"
    if before <= 0 or not (math.isfinite(before) and math.isfinite(now)):
        return text
    percent = round(100 * (now / before - 1))
    if percent == 0:
        return text + say(" (the same)", "（不变）")
    if percent < 0:
        return text + say(f" ({-percent} % lower)", f"（降低 {-percent} %）")
    return text + say(f" ({percent} % higher)", f"（升高 {percent} %）")


def moment(text: object) -> str:
    """A record's ISO time, to the minute: `2026-11-28 07:13 UTC`."""
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return str(text)


def aligned(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """The rows of a table as lines with aligned columns; a Chinese character is two columns wide."""
    from rich.cells import cell_len  # late: most commands print no such table

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        indent
        + "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings as `--set` takes them: `rank=8, alpha=16`; without those that are None."""
    return ", ".join(
        f"{key}={_plain(value)}" for key, value in settings.items() if value is not None
    )


def options_text(options: Mapping[str, Any]) -> str:
    """A method's options; of a composite, as `lora: rank=8; p-tuning: hidden=64`."""
    if options and all(isinstance(value, Mapping) for value in options.values()):
        return "; ".join(f"{method}: {settings_text(part)}" for method, part in options.items())
    return settings_text(options)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_plain(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def wrapped(name: str, text: str) -> list[list[str]]:
    """A table row with its text wrapped over several lines; no row for an empty text."""
    lines = textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)
    return [["" if index else name, line] for index, line in enumerate(lines)]
