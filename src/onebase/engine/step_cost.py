"""What a step costs on this machine, learned from the steps that ran."""

from collections import deque
from statistics import median

_FORGET = 0.97  # what an observation still counts after the next
_OUTLIER = 4.0  # a step that took longer than so many times its estimate counts as that
_RECENT = 48


class StepCost:
    """Estimates the seconds of a step from its decode rows and its prefill tokens, each by a line
    through what was seen.
    """

    def __init__(self) -> None:
        self._decode = _Line(flat=True)
        self._prefill = _Line(flat=False)
        self._gaps: deque[float] = deque(maxlen=_RECENT)

    def observe(self, decode_rows: int, prefill_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if decode_rows:
            self._gaps.append(seconds)
        if not prefill_tokens:
            self._decode.observe(decode_rows, seconds)
        else:
            before = self.decode(decode_rows) if decode_rows else 0.0
            if before is not None:
                self._prefill.observe(prefill_tokens, max(0.0, seconds - before))

    def decode(self, rows: int) -> float | None:
        """The seconds of a step that decodes so many rows; None before one was seen."""
        return self._decode.at(rows)

    def prefill_tokens(self, seconds: float) -> int | None:
        """How many prompt tokens a step has room for in so many seconds more."""
        return self._prefill.reach(seconds)

    @property
    def prefill_start(self) -> float:
        """The seconds that reading takes before its first token, as far as is known."""
        return self._prefill.fixed

    @property
    def usual(self) -> float | None:
        """The median of the recent steps that decoded."""
        return median(self._gaps) if self._gaps else None


class _Line:
    """seconds = fixed + each * size, by least squares where recent observations count most. Where
    they do not tell the two apart it is all fixed (`flat`), or all of it grows with the size.
    """

    def __init__(self, *, flat: bool) -> None:
        self._flat = flat
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, size: int, seconds: float) -> None:
        expected = self.at(size)
        if expected and self._count > 3:
            seconds = min(seconds, _OUTLIER * expected)
        seen = (1.0, size, seconds, size * size, size * seconds)
        kept = (self._count, self._x, self._y, self._xx, self._xy)
        self._count, self._x, self._y, self._xx, self._xy = (
            _FORGET * old + new for old, new in zip(kept, seen, strict=True)
        )

    def at(self, size: int) -> float | None:
        """The estimate, None before anything was observed."""
        if not self._count:
            return None
        fixed, each = self._fitted()
        return fixed + each * size

    @property
    def fixed(self) -> float:
        """What a size of nothing takes; nothing before anything was observed."""
        return self._fitted()[0] if self._count else 0.0

    def reach(self, seconds: float) -> int | None:
        """The largest size that takes `seconds` at most."""
        if not self._count:
            return None
        fixed, each = self._fitted()
        return max(0, int((seconds - fixed) / each)) if each > 0 else 1 << 30

    def _fitted(self) -> tuple[float, float]:
        """`fixed` and `each`, neither below zero."""
        spread = self._xx - self._x * self._x / self._count
        if spread > 1e-6 * self._xx:
            each = (self._xy - self._x * self._y / self._count) / spread
            fixed = (self._y - each * self._x) / self._count
            if each >= 0 and fixed >= 0:
                return fixed, each
        return (self._y / self._count, 0.0) if self._flat else (0.0, self._xy / self._xx)
