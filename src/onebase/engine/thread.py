"""The thread that steps an engine while others add requests."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event as Signal
from threading import Thread
from typing import Any, TypeVar

from onebase.engine.engine import Engine
from onebase.engine.prompt import Prompt
from onebase.engine.request import Event, Request
from onebase.engine.sampling import Sampling

_log = logging.getLogger("onebase.engine")
_Result = TypeVar("_Result")


class EngineThread:
    """Steps `engine` in a thread of its own while it has requests. Each step's events are passed to
    `on_events`, once per step, in that thread.
    """

    def __init__(self, engine: Engine, on_events: Callable[[list[Event]], None]) -> None:
        self.engine = engine
        self._on_events = on_events
        # One worker, so that requests keep the order in which they were submitted.
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="onebase-intake")
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = Signal()
        self._deadline: float | None = None  # in time.monotonic, set by `stop`
        self._thread = Thread(target=self._run, name="onebase-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        task: str,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        also: Sequence[str] = (),
        score_from: int | None = None,
        score_only: bool = False,
        streamed: bool = True,
    ) -> "Future[Request]":
        """As Engine.add_request, in a thread that prepares requests. Events of the request may arrive
        before the future is done.
        """

        def add() -> Request:
            request = self.engine.add_request(
                task,
                prompt,
                sampling,
                also=also,
                score_from=score_from,
                score_only=score_only,
                streamed=streamed,
            )
            self._wake.set()
            return request

        return self._intake.submit(add)

    def abort(self, request: Request) -> None:
        """Abort a request after the current step. Its last event has the finish reason "abort"."""
        self.call(lambda: self.engine.abort(request))

    def call(self, function: Callable[[], _Result]) -> "Future[_Result]":
        """Run `function` in the engine's thread between two steps. Cancelled if the thread has ended."""
        future: Future[_Result] = Future()
        if not self.alive:
            future.cancel()
            return future
        self._calls.append((future, function))
        self._wake.set()
        return future

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def stop(self, drain_seconds: float) -> None:
        """Let requests finish for `drain_seconds`, abort the others, and end the thread. Nothing may
        be submitted afterwards.
        """
        self._intake.shutdown()
        self._deadline = time.monotonic() + drain_seconds
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._run_calls()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.engine.abort_all()
            if not self.engine.idle:
                self._step()
            elif self._calls:
                continue
            elif self._deadline is not None:
                break
            else:
                self._wake.wait()

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):
            future, function = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001  passed on to the caller
                future.set_exception(error)

    def _step(self) -> None:
        try:
            if events := self.engine.step():
                self._on_events(events)
        except Exception:  # noqa: BLE001  the step's requests have ended; the others go on
            _log.exception("a step failed")
