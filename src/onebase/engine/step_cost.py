"""An estimate of a step's duration on this machine, fitted to the steps that ran."""

from collections import deque
from statistics import median

_DECAY = 0.97  # the weight of an observation relative to the next one
_OUTLIER = 4.0  # longer steps are clipped to this multiple of the estimate
_RECENT = 48  # steps in the median


class StepCost:
    """Estimates the seconds of a step from its decode rows and its prefill tokens, with a linear fit
    for each.
    """

    def __init__(self) -> None:
        self._decode = _Line(flat=True)
        self._prefill = _Line(flat=False)
        self._gaps: deque[float] = deque(maxlen=_RECENT)

    def observe(self, decode_rows: int, prefill_tokens: int, seconds: float) -> None:
        """Add the duration of a step to the fits."""
        if decode_rows:
            self._gaps.append(seconds)
        if not prefill_tokens:
            self._decode.observe(decode_rows, seconds)
        else:
            decoding = self.decode(decode_rows) if decode_rows else 0.0
            if decoding is not None:
                self._prefill.observe(prefill_tokens, max(0.0, seconds - decoding))

    def decode(self, rows: int) -> float | None:
        """The seconds of a step that decodes `rows` rows; None before the first observation."""
        return self._decode.estimate(rows)

    def prefill_tokens(self, seconds: float) -> int | None:
        """How many prompt tokens can be computed in `seconds`; None before the first observation."""
        return self._prefill.largest_size(seconds)

    @property
    def prefill_start(self) -> float:
        """The fixed seconds of a prefill, independent of its tokens; 0 before the first observation."""
        return self._prefill.fixed

    @property
    def median_seconds(self) -> float | None:
        """The median duration of the recent steps with decode rows; None before the first."""
        return median(self._gaps) if self._gaps else None


class _Line:
    """seconds = fixed + each * size, by least squares weighted towards recent observations. If the
    data do not determine both, everything is fixed (`flat`) or everything grows with the size.
    """

    def __init__(self, *, flat: bool) -> None:
        self._flat = flat
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, size: int, seconds: float) -> None:
        expected = self.estimate(size)
        if expected and self._count > 3:
            seconds = min(seconds, _OUTLIER * expected)
        new_terms = (1.0, size, seconds, size * size, size * seconds)
        sums = (self._count, self._x, self._y, self._xx, self._xy)
        self._count, self._x, self._y, self._xx, self._xy = (
            _DECAY * total + term for total, term in zip(sums, new_terms, strict=True)
        )

    def estimate(self, size: int) -> float | None:
        """The estimated seconds for `size`; None before the first observation."""
        if not self._count:
            return None
        fixed, each = self._fitted()
        return fixed + each * size

    @property
    def fixed(self) -> float:
        """The estimated seconds for size 0; 0 before the first observation."""
        return self._fitted()[0] if self._count else 0.0

    def largest_size(self, seconds: float) -> int | None:
        """The largest size that takes at most `seconds`; None before the first observation."""
        if not self._count:
            return None
        fixed, each = self._fitted()
        return max(0, int((seconds - fixed) / each)) if each > 0 else 1 << 30

    def _fitted(self) -> tuple[float, float]:
        """`fixed` and `each`, neither of them negative."""
        spread = self._xx - self._x * self._x / self._count
        if spread > 1e-6 * self._xx:
            each = (self._xy - self._x * self._y / self._count) / spread
            fixed = (self._y - each * self._x) / self._count
            if each >= 0 and fixed >= 0:
                return fixed, each
        return (self._y / self._count, 0.0) if self._flat else (0.0, self._xy / self._xx)
