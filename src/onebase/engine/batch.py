"""The requests of one base, and the step that advances them."""

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
    """Requests are added by `add` and removed when they finish or by `abort`. `events` and `ended`
    collect events and finished requests until the caller clears them. Up to `slots` requests run
    at once.
    """

    def __init__(self, runner: Runner, *, slots: int = 64) -> None:
        self.runner = runner
        self.events: list[Event] = []
        self.ended: list[Request] = []
        self._scheduler = Scheduler(runner, max_running=slots)
        self._sampler = Sampler()
        self._unfinished: dict[Request, None] = {}  # in the order of arrival

    @property
    def requests(self) -> list[Request]:
        """The requests that are running or waiting."""
        return list(self._unfinished)

    @property
    def idle(self) -> bool:
        """Whether no request is running or waiting."""
        return not self._unfinished

    def stats(self) -> dict[str, int]:
        """The number of requests that wait and run, and Runner.stats."""
        running = len(self._scheduler.running)
        waiting = len(self._unfinished) - running
        return {"waiting": waiting, "running": running, **self.runner.stats()}

    def prepare(self, request: Request) -> None:
        """Prepare a request before `add`, which does it otherwise; any thread may call this. Raises
        UsageError for adapters, a constraint or a bias that cannot be applied.
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
        self._unfinished[request] = None
        if request.score_from == 0:
            request.prompt_logprobs.append(Token(request.prompt[0]))  # nothing predicts the first
        if request.target_length:
            self._scheduler.add(request)
        else:
            self._finish(request, "length")

    def abort(self, request: Request) -> None:
        """Abort a request, unless it has finished."""
        if request in self._unfinished:
            self._finish(request, "abort")

    def step(self) -> None:
        """Generate a token for every running sequence, and process some tokens of waiting prompts.

        If the step fails, its requests finish with "error".
        """
        begin = time.perf_counter()
        chunks: list[Chunk] = []
        done = False
        try:
            chunks = self._scheduler.schedule(begin)
            assert chunks, "a runner that holds no request has room for any"
            self._sampler.prepare([chunk.request for chunk in chunks if _samples(chunk)])
            self._process_logits(chunks, self.runner.run(chunks))
            done = True
        finally:
            if not done:
                self._fail([chunk.request for chunk in chunks] or self.requests)
        self._scheduler.observe(chunks, time.perf_counter() - begin)

    def _fail(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.finish_reason is None:
                self._finish(request, "error")

    def _process_logits(self, chunks: Sequence[Chunk], logits: Tensor) -> None:
        """Advance the requests of a step with its `logits`, whose rows are in the chunks' order."""
        sampled_rows: list[int] = []
        sampling: list[Request] = []
        end = 0
        for chunk in chunks:
            request = chunk.request
            request.computed += chunk.length
            chunk_logits = logits[end : end + chunk.logits]
            end += chunk.logits
            if request.score_from is not None and not request.tokens:
                first = request.computed - chunk.logits + 1  # the token that the first row predicts
                scored = min(chunk.logits, len(request.prompt) - first)
                if not score_prompt(request, chunk_logits[:scored], first):
                    request.error = not_finite()
                    self._finish(request, "error")
                    continue
            if request.computed == request.target_length and request.limit:
                sampled_rows.append(end - 1)
                sampling.append(request)
            elif request.computed == request.target_length:
                self._finish(request, "length")
        if sampling:
            all_rows = len(sampled_rows) == len(logits)
            draws = self._sampler.sample(logits if all_rows else logits[sampled_rows], sampling)
            for request, draw in zip(sampling, draws, strict=True):
                self._add_token(request, draw)

    def _add_token(self, request: Request, draw: Draw) -> None:
        """Add a sampled token to an answer."""
        if draw.error:
            request.error = draw.error
            self._finish(request, "error")
            return
        request.margins.append(draw.margin)
        if request.record_draws:
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
            self._emit(request, text, (token,))

    def _finish(
        self, request: Request, reason: FinishReason, text: str = "", *tokens: Token
    ) -> None:
        """Finish a request and emit the rest of its text."""
        request.finish_reason = reason
        del self._unfinished[request]
        self._scheduler.remove(request)
        self.ended.append(request)
        assert request.detokenizer is not None
        self._emit(request, text + request.detokenizer.finish(request.ended_by), tokens)

    def _emit(self, request: Request, text: str, tokens: tuple[Token, ...]) -> None:
        if text:
            request.text_parts.append(text)
        if request.emit_events:
            self.events.append(Event(request, text, tokens, request.finish_reason))


def _samples(chunk: Chunk) -> bool:
    """Whether a token is sampled after this chunk."""
    request = chunk.request
    return bool(request.limit) and request.computed + chunk.length == request.target_length
