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
    """Steps `engine` in a thread of its own as long as it has something to do, and hands each step's
    events to `on_events`, once a step, in that thread.
    """

    def __init__(self, engine: Engine, on_events: Callable[[list[Event]], None]) -> None:
        self.engine = engine
        self._on_events = on_events
        # One worker: requests keep the order in which they were submitted.
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="onebase-intake")
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._news = Signal()
        self._deadline: float | None = None  # of time.monotonic, once it is to stop
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
        steady: bool = True,
    ) -> "Future[Request]":
        """As Engine.add_request, in a thread that prepares requests. Events of the request may come
        before the caller sees the result.
        """

        def add() -> Request:
            request = self.engine.add_request(
                task,
                prompt,
                sampling,
                also=also,
                score_from=score_from,
                score_only=score_only,
                steady=steady,
            )
            self._news.set()
            return request

        return self._intake.submit(add)

    def abort(self, request: Request) -> None:
        """Drop a request after the step that runs now. Its last event says "abort"."""
        self.call(lambda: self.engine.abort(request))

    def call(self, function: Callable[[], _Result]) -> "Future[_Result]":
        """Run `function` in the engine's thread between two steps. Cancelled when that has ended."""
        future: Future[_Result] = Future()
        if not self.alive:
            future.cancel()
            return future
        self._calls.append((future, function))
        self._news.set()
        return future

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, drain_seconds: float) -> None:
        """Let requests finish for so long, abort the others, and end the thread. Nothing may be
        submitted any more.
        """
        self._intake.shutdown()
        self._deadline = time.monotonic() + drain_seconds
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._news.clear()
            self._answer_calls()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.engine.abort_all()
            if not self.engine.idle:
                self._step()
            elif self._calls:
                continue
            elif self._deadline is not None:
                break
            else:
                self._news.wait()

    def _answer_calls(self) -> None:
        for _ in range(len(self._calls)):
            future, function = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001  whatever it is, it is the caller's
                future.set_exception(error)

    def _step(self) -> None:
        try:
            if events := self.engine.step():
                self._on_events(events)
        except Exception:  # noqa: BLE001  its requests have ended; there are others to serve
            _log.exception("a step failed")
