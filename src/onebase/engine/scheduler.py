"""Continuous batching: which requests take part in the next step, and with how many tokens.

Every sequence whose prompt is computed decodes in every step; beside them, some tokens of waiting
prompts are prefilled. Requests are served first come, first served, whatever their tasks: none is
admitted before an earlier one. The rest of a partly computed prompt comes before later prompts.

While a running answer is streamed, a step with prefill is limited to 1.4 times the duration of a step
that only decodes. If so short a prefill is not worth its fixed cost, or if a prompt has waited for a
second, two steps in five may take 2.5 times the median step. The gaps between tokens thus stay under
three times their median, and the median under 1.5 times that of decoding alone.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil

from onebase.engine.request import Chunk, Request
from onebase.engine.runner import Runner
from onebase.engine.step_cost import StepCost

PACK_TOKENS = 1024  # prefilled per step while no running answer is streamed
LOGIT_BYTES = 64 << 20  # of scored prompts per step: each token's logits are a whole vocabulary
_MIN_LOGITS = 16
_SHORT, _LONG = 1.4, 2.5
_STEPS, _LONG_STEPS = 5, (2, 4)
_PATIENCE = 1.0  # seconds
_MAX_FIXED_SHARE = 0.5  # of the time for prefill, for its fixed cost
_MIN_TOKENS = 4
_FIRST_TOKENS = 64  # prefilled while their cost is unknown
_DECODE_ONLY_EVERY = 16  # steps, so that the cost of decoding alone stays known


class Scheduler:
    """Schedules the requests of one runner: `waiting` in the order of arrival, and `running`, at most
    `max_running`, which have KV cache.
    """

    def __init__(self, runner: Runner, *, max_running: int = 64) -> None:
        self.runner = runner
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._max_running = max_running
        self._cost = StepCost()
        self._prefill_steps = self._since_decode_only = 0

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Remove a request, running or waiting, and free its KV cache."""
        if request in self.running:
            self.running.remove(request)
            self.runner.release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, now: float) -> list[Chunk]:
        """The chunks of the next step, which begins at time `now`: decoding requests, then parts of
        prompts. A request is admitted when the first part of its prompt is scheduled.
        """
        decoding = [request for request in self.running if request.computed >= len(request.prompt)]
        chunks = [Chunk(request, 1, 1) for request in decoding]
        return [*chunks, *self._prefill(self._prefill_tokens(decoding, now), now)]

    def observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """Record the duration of a step with these chunks."""
        tokens = sum(chunk.length for chunk in chunks)
        rows = sum(chunk.length == 1 and chunk.logits == 1 for chunk in chunks)
        self._cost.observe(rows, tokens - rows, seconds)

    def _prefill(self, tokens: int, now: float) -> Iterator[Chunk]:
        """Parts of prompts, at most `tokens` tokens together, the oldest prompt first."""
        logits = max(_MIN_LOGITS, LOGIT_BYTES // (4 * self.runner.base.shape.vocabulary))
        prefilling = self._prefilling(now)
        while tokens > 0 and logits > 0 and (request := next(prefilling, None)) is not None:
            chunk = _next_chunk(request, tokens, logits)
            tokens -= chunk.length
            logits -= chunk.logits
            self.runner.expect(chunk)
            yield chunk

    def _prefilling(self, now: float) -> Iterator[Request]:
        """The requests whose prompts are not computed; waiting ones are admitted when reached."""
        yield from [item for item in self.running if item.computed < len(item.prompt)]
        while self.waiting and len(self.running) < self._max_running:
            request = self.waiting[0]
            if not self.runner.can_admit(request):
                return
            self.waiting.popleft()
            self.runner.admit(request)
            request.admitted = now
            self.running.append(request)
            yield request

    def _prefill_tokens(self, decoding: Sequence[Request], now: float) -> int:
        """The most prompt tokens in the next step."""
        prefilling = (item for item in self.running if item.computed < len(item.prompt))
        oldest = next(prefilling, self.waiting[0] if self.waiting else None)
        if oldest is None:
            return 0
        if not any(request.streamed for request in decoding):
            return PACK_TOKENS
        decode_seconds = self._cost.decode(len(decoding))
        self._since_decode_only += 1
        if decode_seconds is None or self._since_decode_only > _DECODE_ONLY_EVERY:
            self._since_decode_only = 0
            return 0
        self._prefill_steps += 1
        seconds = (_SHORT - 1) * decode_seconds
        worthwhile = self._cost.prefill_start <= _MAX_FIXED_SHARE * seconds
        urgent = not worthwhile or now - oldest.arrived > _PATIENCE
        if urgent and self._prefill_steps % _STEPS in _LONG_STEPS:
            seconds = _LONG * (self._cost.median_seconds or decode_seconds) - decode_seconds
        elif not worthwhile:
            return 0
        tokens = self._cost.prefill_tokens(seconds)
        return _FIRST_TOKENS if tokens is None else max(_MIN_TOKENS, min(tokens, PACK_TOKENS))


def _next_chunk(request: Request, tokens: int, logits: int) -> Chunk:
    """The next part of a prompt: at most `tokens` tokens and `logits` rows of logits. A prompt that
    takes several steps is divided evenly.
    """
    remaining = request.target_length - request.computed
    length = ceil(remaining / ceil(remaining / tokens))
    if request.score_from is None:
        return Chunk(request, length, int(length == remaining))
    first = max(0, request.score_from - 1)  # the row that predicts the first scored token
    unscored = max(0, first - request.computed)
    length = min(length, unscored + logits)
    return Chunk(request, length, max(0, length - unscored))
