"""Admission control: the limit on the sequences in the server."""

from collections.abc import Iterator
from contextlib import contextmanager

from onebase.language import say
from onebase.serving.errors import ApiError
from onebase.serving.settings import Limits


class Admission:
    """Counts the running and waiting sequences, and refuses requests beyond the limits.

    The engine decides which sequences run and which wait. After `close`, all requests are refused.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open = True
        self.sequences = 0
        self._seconds = 1.0  # the moving average of the duration of a request

    def close(self) -> None:
        """Refuse all requests from now on."""
        self._open = False

    @property
    def closed(self) -> bool:
        """Whether the server is shutting down."""
        return not self._open

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Reserve room for `sequences` while the block runs. Raises ApiError: 400, 429 or 503."""
        self.check_open()
        capacity = self._limits.concurrent + self._limits.queue
        limit = min(self._limits.choices, capacity)
        if sequences > limit:
            raise ApiError(
                400,
                "too_many_choices",
                say(
                    f"The request has {sequences} sequences (prompts times n); {limit} are allowed.",
                    f"该请求包含 {sequences} 个序列（提示数乘以 n），上限为 {limit}。",
                ),
                say("Request fewer at a time.", "请减少每次请求的序列数。"),
                param="n",
            )
        if self.sequences + sequences > capacity:
            raise ApiError(
                429,
                "queue_full",
                say("Too many requests are waiting.", "排队的请求过多。"),
                say("Try again later.", "请稍后重试。"),
                retry_after=self._retry_after(),
            )
        self.sequences += sequences
        try:
            yield
        finally:
            self.sequences -= sequences

    def check_open(self) -> None:
        """Raise ApiError if the server is shutting down."""
        if not self._open:
            raise ApiError(
                503,
                "shutting_down",
                say("The server is shutting down.", "服务器正在关闭。"),
                say("Try again later.", "请稍后重试。"),
                retry_after=5,
            )

    def record_duration(self, seconds: float) -> None:
        """Record the duration of a request, for the next Retry-After."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def _retry_after(self) -> int:
        """The estimated seconds until a batch of requests has finished."""
        return min(60, max(1, round(self._seconds)))
