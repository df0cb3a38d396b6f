"""The sequences of one HTTP request, and the way of their events from the engine's thread.

The engine's thread hands over once a step, whatever the step brought. In the event loop each event
then goes to the exchange that its request belongs to.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from onebase.engine.request import Event, Request
from onebase.engine.sampling import Sampling
from onebase.engine.thread import EngineThread
from onebase.serving.errors import failed_pass, timed_out
from onebase.serving.metrics import Metrics

Piece = tuple[int, Event]
"""Which of an exchange's sequences, and what came of it."""


@dataclass(frozen=True)
class Wanted:
    """One sequence that a request asks for; the options are those of Engine.add_request."""

    prompt: tuple[int, ...]
    sampling: Sampling
    score_from: int | None = None
    score_only: bool = False
    streamed: bool = True


class Exchange:
    """Some sequences under way. `task` labels what is counted of them; `began` is the time
    (time.perf_counter) at which the HTTP request came.
    """

    def __init__(self, task: str, metrics: Metrics, began: float) -> None:
        self.requests: list[Request] = []
        self._arrived: list[Piece] = []
        self._news = asyncio.Event()
        self._began = began
        self._latest: dict[int, float] = {}
        self._unfinished: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._first = metrics.first_token.labels(task)
        self._between = metrics.between_tokens.labels(task)

    def join(self, request: Request) -> int:
        """Take in a request; returns its place."""
        self.requests.append(request)
        place = len(self.requests) - 1
        self._unfinished.add(place)
        return place

    def take(self, place: int, event: Event, now: float) -> None:
        """Note an event of the request at `place`."""
        if place not in self._unfinished:
            return  # it came after the end that this side gave it
        if event.tokens or event.text:
            before = self._latest.get(place)
            if before is None:
                self._first.observe(now - self._began)
            else:
                self._between.observe((now - before) / max(1, len(event.tokens)))
            self._latest[place] = now
        if event.finish_reason is not None:
            self._unfinished.discard(place)
        self._arrived.append((place, event))
        self._news.set()

    def cut_off_after(self, seconds: float) -> None:
        """In so many seconds, end what then still runs as if its limit of tokens were reached."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.cut_off)

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def cut_off(self) -> None:
        """End what still runs as if its limit of tokens were reached."""
        for place in sorted(self._unfinished):
            self._arrived.append((place, Event(self.requests[place], finish_reason="length")))
        self._unfinished.clear()
        self._news.set()

    @property
    def finished(self) -> bool:
        """Whether every sequence has come to its end."""
        return not self._unfinished

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What comes, as it comes, until every sequence has ended. Raises ApiError when the engine
        fails.
        """
        while self._unfinished or self._arrived:
            await self._news.wait()
            self._news.clear()
            arrived, self._arrived = self._arrived, []
            for _, event in arrived:
                if event.finish_reason == "error":
                    raise failed_pass(event.request.error)
            yield arrived

    async def whole(self) -> list[Event]:
        """Each sequence's events joined in one."""
        joined = [Event(request) for request in self.requests]
        async for pieces in self.pieces():
            for place, event in pieces:
                before = joined[place]
                joined[place] = replace(
                    event, text=before.text + event.text, tokens=before.tokens + event.tokens
                )
        return joined


def require_scores(request: Request) -> None:
    """Raise ApiError, 504, where a sequence was cut off before all of its prompt was scored."""
    if request.score_from is None:
        return
    if len(request.prompt_logprobs) < len(request.prompt) - request.score_from:
        raise timed_out()


class Dispatcher:
    """Brings the engine's events to their exchanges. Lives in the event loop it is made in."""

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._places: dict[Request, tuple[Exchange, int]] = {}
        self._submitting = 0
        self._early: dict[Request, list[Event]] = {}

    def on_events(self, events: Sequence[Event]) -> None:
        """Called in the engine's thread, once a step."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    async def submit(
        self, exchange: Exchange, thread: EngineThread, task: str, sequences: Sequence[Wanted]
    ) -> None:
        """Ask the engine's `task` for `sequences`; their events go to `exchange`."""
        self._submitting += 1
        futures = [_submitted(thread, task, sequence) for sequence in sequences]
        waiting = list(futures)
        try:
            while waiting:
                self._claim(exchange, await asyncio.wrap_future(waiting[0]))
                waiting.pop(0)
        finally:
            for future in waiting:  # one was refused, or the client left
                if not future.cancel():
                    future.add_done_callback(lambda done: _abandon(thread, done))
            self._submitting -= 1
            if not self._submitting:
                self._early.clear()

    def cut_off_all(self) -> None:
        """End everything that still runs, with what it has come to."""
        for exchange in {exchange for exchange, _ in self._places.values()}:
            exchange.cut_off()

    def release(self, exchange: Exchange, thread: EngineThread) -> None:
        """Forget an exchange; what still runs of it is aborted."""
        exchange.close()
        for request in exchange.requests:
            self._places.pop(request, None)
            if request.finish_reason is None:
                thread.abort(request)

    def _claim(self, exchange: Exchange, request: Request) -> None:
        """Bring a request's events to `exchange` from now on, and those that came before."""
        place = exchange.join(request)
        self._places[request] = (exchange, place)
        now = time.perf_counter()
        for event in self._early.pop(request, ()):
            exchange.take(place, event, now)

    def _deliver(self, events: Sequence[Event]) -> None:
        now = time.perf_counter()
        self._metrics.batch.observe(len(events))
        for event in events:
            found = self._places.get(event.request)
            if found is not None:
                exchange, place = found
                exchange.take(place, event, now)
            elif self._submitting:  # its submission may not have come back yet
                self._early.setdefault(event.request, []).append(event)


def _submitted(thread: EngineThread, task: str, wanted: Wanted) -> "Future[Request]":
    return thread.submit(
        task,
        wanted.prompt,
        wanted.sampling,
        score_from=wanted.score_from,
        score_only=wanted.score_only,
        streamed=wanted.streamed,
    )


def _abandon(thread: EngineThread, submitted: "Future[Request]") -> None:
    """Abort a request that nobody waits for, if it came to be one."""
    if not submitted.cancelled() and submitted.exception() is None:
        thread.abort(submitted.result())
