"""The sequences of one HTTP request, and the delivery of their events from the engine's thread.

The engine's thread hands over the events of each step at once. In the event loop, each event is
dispatched to the sequence group of its request.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from onebase.engine.request import Event, Request
from onebase.engine.sampling import Sampling
from onebase.engine.thread import EngineThread
from onebase.serving.errors import generation_failed, timed_out
from onebase.serving.metrics import Metrics

IndexedEvent = tuple[int, Event]
"""The index of a sequence in its group, and an event of it."""


@dataclass(frozen=True)
class SequenceSpec:
    """One sequence of an HTTP request. The fields are those of Engine.add_request."""

    prompt: tuple[int, ...]
    sampling: Sampling
    score_from: int | None = None
    score_only: bool = False
    streamed: bool = True


class SequenceGroup:
    """The running sequences of an HTTP request that arrived at `began` (time.perf_counter). Their
    metrics are labelled with `task`.
    """

    def __init__(self, task: str, metrics: Metrics, began: float) -> None:
        self.requests: list[Request] = []
        self._pending: list[IndexedEvent] = []
        self._has_pending = asyncio.Event()
        self._began = began
        self._last_token_time: dict[int, float] = {}
        self._unfinished: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._time_to_first_token = metrics.time_to_first_token.labels(task)
        self._time_per_token = metrics.time_per_token.labels(task)

    def add(self, request: Request) -> int:
        """Add a request; returns its index."""
        self.requests.append(request)
        index = len(self.requests) - 1
        self._unfinished.add(index)
        return index

    def on_event(self, index: int, event: Event, now: float) -> None:
        """Queue an event of the request at `index`."""
        if index not in self._unfinished:
            return  # it was truncated before
        if event.tokens or event.text:
            previous = self._last_token_time.get(index)
            if previous is None:
                self._time_to_first_token.observe(now - self._began)
            else:
                self._time_per_token.observe((now - previous) / max(1, len(event.tokens)))
            self._last_token_time[index] = now
        if event.finish_reason is not None:
            self._unfinished.discard(index)
        self._pending.append((index, event))
        self._has_pending.set()

    def truncate_after(self, seconds: float) -> None:
        """Call `truncate` in `seconds`."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.truncate)

    def close(self) -> None:
        """Cancel the timer of `truncate_after`."""
        if self._timer is not None:
            self._timer.cancel()

    def truncate(self) -> None:
        """End the unfinished sequences as if they had reached their token limit."""
        for index in sorted(self._unfinished):
            self._pending.append((index, Event(self.requests[index], finish_reason="length")))
        self._unfinished.clear()
        self._has_pending.set()

    @property
    def finished(self) -> bool:
        """Whether all sequences have ended."""
        return not self._unfinished

    async def events(self) -> AsyncIterator[list[IndexedEvent]]:
        """The events as they arrive, until all sequences have ended. Raises ApiError if the engine
        fails.
        """
        while self._unfinished or self._pending:
            await self._has_pending.wait()
            self._has_pending.clear()
            events, self._pending = self._pending, []
            for _, event in events:
                if event.finish_reason == "error":
                    raise generation_failed(event.request.error)
            yield events

    async def results(self) -> list[Event]:
        """Each sequence's events, joined to one."""
        joined = [Event(request) for request in self.requests]
        async for events in self.events():
            for index, event in events:
                so_far = joined[index]
                joined[index] = replace(
                    event, text=so_far.text + event.text, tokens=so_far.tokens + event.tokens
                )
        return joined


def require_complete_scores(request: Request) -> None:
    """Raise ApiError, 504, for a sequence that was truncated before its prompt was scored."""
    if request.score_from is None:
        return
    if len(request.prompt_logprobs) < len(request.prompt) - request.score_from:
        raise timed_out()


class Dispatcher:
    """Delivers the engine's events to their sequence groups. Belongs to the event loop in which it is
    created.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._targets: dict[Request, tuple[SequenceGroup, int]] = {}
        self._submitting = 0
        self._unclaimed: dict[Request, list[Event]] = {}

    def on_events(self, events: Sequence[Event]) -> None:
        """Called in the engine's thread, once per step."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    async def submit(
        self,
        group: SequenceGroup,
        thread: EngineThread,
        task: str,
        specs: Sequence[SequenceSpec],
    ) -> None:
        """Submit `specs` to the engine's `task`; their events go to `group`."""
        self._submitting += 1
        waiting = [_submitted(thread, task, spec) for spec in specs]
        try:
            while waiting:
                self._register(group, await asyncio.wrap_future(waiting[0]))
                waiting.pop(0)
        finally:
            for future in waiting:  # one was refused, or the client disconnected
                if not future.cancel():
                    future.add_done_callback(lambda done: _abandon(thread, done))
            self._submitting -= 1
            if not self._submitting:
                self._unclaimed.clear()

    def truncate_all(self) -> None:
        """End all running sequences with the tokens that they have."""
        for group in {group for group, _ in self._targets.values()}:
            group.truncate()

    def release(self, group: SequenceGroup, thread: EngineThread) -> None:
        """Remove a group and abort its running requests."""
        group.close()
        for request in group.requests:
            self._targets.pop(request, None)
            if request.finish_reason is None:
                thread.abort(request)

    def _register(self, group: SequenceGroup, request: Request) -> None:
        """Deliver a request's events to `group`, including those that have already arrived."""
        index = group.add(request)
        self._targets[request] = (group, index)
        now = time.perf_counter()
        for event in self._unclaimed.pop(request, ()):
            group.on_event(index, event, now)

    def _deliver(self, events: Sequence[Event]) -> None:
        now = time.perf_counter()
        self._metrics.batch.observe(len(events))
        for event in events:
            target = self._targets.get(event.request)
            if target is not None:
                group, index = target
                group.on_event(index, event, now)
            elif self._submitting:  # its request may not be registered yet
                self._unclaimed.setdefault(event.request, []).append(event)


def _submitted(thread: EngineThread, task: str, spec: SequenceSpec) -> "Future[Request]":
    return thread.submit(
        task,
        spec.prompt,
        spec.sampling,
        score_from=spec.score_from,
        score_only=spec.score_only,
        streamed=spec.streamed,
    )


def _abandon(thread: EngineThread, submitted: "Future[Request]") -> None:
    """Abort a request that nobody waits for, if it was created."""
    if not submitted.cancelled() and submitted.exception() is None:
        thread.abort(submitted.result())
