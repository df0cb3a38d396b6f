"""A lock that is granted in the order of the requests."""

from collections import deque
from threading import Condition


class FairLock:
    """A lock for `with`, granted to the thread that has waited longest. A thread that takes it again
    and again, like the one that steps an engine, cannot starve the others. Not reentrant.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: deque[object] = deque()

    def __enter__(self) -> None:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            acquired = False
            try:
                acquired = self._changed.wait_for(lambda: self._queue[0] is ticket)
            finally:
                if not acquired:  # Ctrl-C while waiting: others must not wait for this ticket
                    self._queue.remove(ticket)
                    self._changed.notify_all()

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()
