"""The requests of one base, and what a step does for them."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.engine.detokenizer import Detokenizer
from onebase.engine.request import Chunk, Event, FinishReason, Request, Token
from onebase.engine.runner import Runner
from onebase.engine.sampler import Draw, Sampler, not_finite
from onebase.engine.scheduler import Scheduler
from onebase.engine.scoring import score_prompt


class Batch:
    """Requests come by `add` and leave when they are done or by `abort`. What happened, and who
    left, is in `events` and `ended` until the caller empties them. Up to `slots` run at once.
    """

    def __init__(self, runner: Runner, *, slots: int = 64) -> None:
        self.runner = runner
        self.events: list[Event] = []
        self.ended: list[Request] = []
        self._scheduler = Scheduler(runner, max_running=slots)
        self._sampler = Sampler()
        self._live: dict[Request, None] = {}  # in the order they came

    @property
    def requests(self) -> list[Request]:
        """Those that run or wait."""
        return list(self._live)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._live

    def stats(self) -> dict[str, int]:
        """Numbers to watch: requests, and those of Runner.stats."""
        running = len(self._scheduler.running)
        waiting = len(self._live) - running
        return {"waiting": waiting, "running": running, **self.runner.stats()}

    def prepare(self, request: Request) -> None:
        """Make ready what `add` does otherwise, in any thread. Raises UsageError for adapters, a
        constraint or a bias that can't be applied.
        """
        self.runner.check(request.contribution)
        template, base = request.tasks[0].template, self.runner.base
        stops = (*request.sampling.stop, *template.stops)
        request.detokenizer = Detokenizer(base.tokenizer, template.hidden, stops)
        self._sampler.admit(request, base.shape.vocabulary)
        if request.sampling.seed is not None:
            request.generator = torch.Generator().manual_seed(request.sampling.seed)

    def add(self, request: Request) -> None:
        """Queue a request."""
        if request.detokenizer is None:
            self.prepare(request)
        self._live[request] = None
        if request.score_from == 0:
            request.prompt_logprobs.append(Token(request.prompt[0]))  # nothing predicts the first
        if request.wanted:
            self._scheduler.add(request)
        else:
            self._finish(request, "length")

    def abort(self, request: Request) -> None:
        """Drop a request, whatever it has come to; nothing happens where it has ended."""
        if request in self._live:
            self._finish(request, "abort")

    def step(self) -> None:
        """Add a token to every sequence that runs, and read some of the prompts that wait.

        Where this fails, the requests that take part end with "error".
        """
        begun = time.perf_counter()
        chunks: list[Chunk] = []
        done = False
        try:
            chunks = self._scheduler.schedule(begun)
            assert chunks, "a runner that holds no request has room for any"
            self._sampler.prepare([chunk.request for chunk in chunks if _draws(chunk)])
            self._take_in(chunks, self.runner.run(chunks))
            done = True
        finally:
            if not done:
                self._fail([chunk.request for chunk in chunks] or self.requests)
        self._scheduler.observe(chunks, time.perf_counter() - begun)

    def _fail(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.finish_reason is None:
                self._finish(request, "error")

    def _take_in(self, chunks: Sequence[Chunk], logits: Tensor) -> None:
        """Advance the requests of a step by its `logits`, which its chunks' rows have in order."""
        rows: list[int] = []
        drawing: list[Request] = []
        at = 0
        for chunk in chunks:
            request = chunk.request
            request.computed += chunk.length
            own = logits[at : at + chunk.logits]
            at += chunk.logits
            if request.score_from is not None and not request.tokens:
                first = request.computed - chunk.logits + 1  # the token that the first row predicts
                scored = min(chunk.logits, len(request.prompt) - first)
                if not score_prompt(request, own[:scored], first):
                    request.error = not_finite()
                    self._finish(request, "error")
                    continue
            if request.computed == request.wanted and request.limit:
                rows.append(at - 1)
                drawing.append(request)
            elif request.computed == request.wanted:
                self._finish(request, "length")
        if drawing:
            drawn_by = logits if len(rows) == len(logits) else logits[rows]
            draws = self._sampler.sample(drawn_by, drawing)
            for request, draw in zip(drawing, draws, strict=True):
                self._take(request, draw)

    def _take(self, request: Request, draw: Draw) -> None:
        """Add what was drawn to an answer."""
        if draw.error:
            request.error = draw.error
            self._finish(request, "error")
            return
        request.margins.append(draw.margin)
        if request.measured:
            assert draw.policy_logprob is not None
            assert draw.entropy is not None
            request.logprobs.append(draw.policy_logprob)
            request.entropies.append(draw.entropy)
        if draw.token in request.ends:
            request.ended_by = draw.token
            self._finish(request, "stop")
            return
        request.tokens.append(draw.token)
        assert request.detokenizer is not None
        text = request.detokenizer.add(draw.token)
        token = Token(draw.token, draw.logprob, draw.top)
        if request.detokenizer.stopped or draw.complete:
            self._finish(request, "stop", text, token)
        elif len(request.tokens) >= request.limit:
            self._finish(request, "length", text, token)
        else:
            self._report(request, text, (token,))

    def _finish(
        self, request: Request, reason: FinishReason, text: str = "", *tokens: Token
    ) -> None:
        """Let go of a request, with what is left of its text."""
        request.finish_reason = reason
        del self._live[request]
        self._scheduler.remove(request)
        self.ended.append(request)
        assert request.detokenizer is not None
        self._report(request, text + request.detokenizer.finish(request.ended_by), tokens)

    def _report(self, request: Request, text: str, tokens: tuple[Token, ...]) -> None:
        if text:
            request.pieces.append(text)
        if request.reported:
            self.events.append(Event(request, text, tokens, request.finish_reason))


def _draws(chunk: Chunk) -> bool:
    """Whether a token is drawn behind this chunk."""
    request = chunk.request
    return bool(request.limit) and request.computed + chunk.length == request.wanted
