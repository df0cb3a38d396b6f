"""How many sequences may be in the server at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from onebase.language import say
from onebase.serving.errors import ApiError
from onebase.serving.settings import Limits


class Admission:
    """Counts the sequences in the server, answered and waiting; refuses what is too much.

    Who waits and who runs is the engine's to say. Once `close` is called, nothing new gets in.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open = True
        self.sequences = 0
        self._seconds = 1.0  # how long a request takes, roughly

    def close(self) -> None:
        """Refuse everything from now on."""
        self._open = False

    @property
    def closed(self) -> bool:
        """Whether the server is shutting down."""
        return not self._open

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """A place for `sequences` while the block runs. Raises ApiError: 400, 429 or 503."""
        self.check_open()
        places = self._limits.concurrent + self._limits.queue
        most = min(self._limits.choices, places)
        if sequences > most:
            raise ApiError(
                400,
                "too_many_choices",
                say(
                    f"The request asks for {sequences} sequences (prompts times n); {most} are allowed.",
                    f"该请求包含 {sequences} 个序列（提示数乘以 n），上限为 {most}。",
                ),
                say("Ask for fewer at a time.", "请减少每次请求的数量。"),
                param="n",
            )
        if self.sequences + sequences > places:
            raise ApiError(
                429,
                "queue_full",
                say("Too many requests are waiting.", "等待中的请求过多。"),
                say("Try again later.", "请稍后重试。"),
                retry_after=self._retry_after(),
            )
        self.sequences += sequences
        try:
            yield
        finally:
            self.sequences -= sequences

    def check_open(self) -> None:
        """Raise ApiError where the server is shutting down."""
        if not self._open:
            raise ApiError(
                503,
                "shutting_down",
                say("The server is shutting down.", "服务器正在关闭。"),
                say("Try again later.", "请稍后重试。"),
                retry_after=5,
            )

    def took(self, seconds: float) -> None:
        """Note how long a request took, for the next Retry-After."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def _retry_after(self) -> int:
        """Seconds until a queue this long has moved on by one batch."""
        return min(60, max(1, round(self._seconds)))
