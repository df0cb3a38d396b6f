"""Which requests take part in the next step, and with how much.

Every sequence whose prompt is read decodes in every step, and beside them some of the waiting
prompts' tokens are read. Requests are served first come, first served, whatever their tasks: none is
admitted before one that came earlier, so a request waits for those before it and for nobody else.
What is left of a prompt goes before the prompts that came later.

While somebody watches the running answers, a step that reads is kept to 1.4 times a step that only
decodes. Where reading so little is not worth its start, or a prompt has waited for a second, two steps
in five may take 2.5 times the usual one. So the gaps between tokens stay under three times their
median, and the median under one and a half times that of decoding alone.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from math import ceil

from onebase.engine.request import Chunk, Request
from onebase.engine.runner import Runner
from onebase.engine.step_cost import StepCost

PACK_TOKENS = 1024  # read at once where nobody waits for a next token
LOGIT_BYTES = 64 << 20  # of scored prompts in one step: each token's logits are a whole vocabulary
_FEWEST_LOGITS = 16
_SHORT, _LONG = 1.4, 2.5
_STEPS, _LONG_STEPS = 5, (2, 4)
_PATIENCE = 1.0  # seconds
_WASTE = 0.5  # of the time for reading, what may go into its start
_LEAST = 4  # tokens
_PROBE = 64  # tokens read while nothing is known of their cost
_DECODE_ONLY_EVERY = 16  # so that what decoding alone costs stays known


class Scheduler:
    """The requests of one runner: `waiting` in the order they came, and `running`, which have a
    place in its cache; `max_running` of them at most.
    """

    def __init__(self, runner: Runner, *, max_running: int = 64) -> None:
        self.runner = runner
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._max_running = max_running
        self._cost = StepCost()
        self._reading_steps = self._since_decode_only = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.running and not self.waiting

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Let go of a request, wherever it is; its place in the cache is free."""
        if request in self.running:
            self.running.remove(request)
            self.runner.release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, now: float) -> list[Chunk]:
        """The chunks of the next step, which begins at time `now`: what decodes, then parts of
        prompts. A request is admitted when its prompt's first part is read.
        """
        decoding = [request for request in self.running if request.computed >= len(request.prompt)]
        chunks = [Chunk(request, 1, 1) for request in decoding]
        return [*chunks, *self._reading(self._room(decoding, now), now)]

    def observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """Learn what a step of these chunks took."""
        tokens = sum(chunk.length for chunk in chunks)
        rows = sum(chunk.length == 1 and chunk.logits == 1 for chunk in chunks)
        self._cost.observe(rows, tokens - rows, seconds)

    def _reading(self, room: int, now: float) -> Iterator[Chunk]:
        """Parts of prompts of `room` tokens together, the oldest prompt first."""
        logits = max(_FEWEST_LOGITS, LOGIT_BYTES // (4 * self.runner.base.shape.vocabulary))
        unread = self._unread(now)
        while room > 0 and logits > 0 and (request := next(unread, None)) is not None:
            chunk = _part(request, room, logits)
            room -= chunk.length
            logits -= chunk.logits
            self.runner.expect(chunk)
            yield chunk

    def _unread(self, now: float) -> Iterator[Request]:
        """The requests with unread prompts; those that wait are admitted as they come up."""
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

    def _room(self, decoding: Sequence[Request], now: float) -> int:
        """How many tokens of prompts the next step reads at most."""
        unread = (item for item in self.running if item.computed < len(item.prompt))
        oldest = next(unread, self.waiting[0] if self.waiting else None)
        if oldest is None:
            return 0
        if not any(request.steady for request in decoding):
            return PACK_TOKENS
        alone = self._cost.decode(len(decoding))
        self._since_decode_only += 1
        if alone is None or self._since_decode_only > _DECODE_ONLY_EVERY:
            self._since_decode_only = 0
            return 0
        self._reading_steps += 1
        seconds = (_SHORT - 1) * alone
        worth = self._cost.prefill_start <= _WASTE * seconds
        hurried = not worth or now - oldest.arrived > _PATIENCE
        if hurried and self._reading_steps % _STEPS in _LONG_STEPS:
            seconds = _LONG * (self._cost.usual or alone) - alone
        elif not worth:
            return 0
        tokens = self._cost.prefill_tokens(seconds)
        return _PROBE if tokens is None else max(_LEAST, min(tokens, PACK_TOKENS))


def _part(request: Request, room: int, logits: int) -> Chunk:
    """The next part of a prompt: `room` tokens and `logits` rows of logits at most. What takes
    several steps is divided evenly.
    """
    left = request.wanted - request.computed
    length = ceil(left / ceil(left / room))
    if request.score_from is None:
        return Chunk(request, length, int(length == left))
    first = max(0, request.score_from - 1)  # the row that the first scored token is predicted by
    unscored = max(0, first - request.computed)
    length = min(length, unscored + logits)
    return Chunk(request, length, max(0, length - unscored))
