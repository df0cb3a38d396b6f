"""A lock that is first come, first served."""

from collections import deque
from threading import Condition
from types import TracebackType


class Turns:
    """A lock for `with`. Whoever has waited longest is next: a thread that takes it again and again,
    as one that steps an engine does, can't keep the others out. Not to be nested.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: deque[object] = deque()

    def __enter__(self) -> None:
        turn = object()
        with self._changed:
            self._queue.append(turn)
            its_turn = False
            try:
                its_turn = self._changed.wait_for(lambda: self._queue[0] is turn)
            finally:
                if not its_turn:  # Ctrl-C while it waited: nobody may wait for this turn
                    self._queue.remove(turn)
                    self._changed.notify_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()
