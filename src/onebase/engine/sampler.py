"""The choice of each request's next token from its logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from onebase.engine.constraint import ConstraintState
from onebase.engine.distribution import (
    Floats,
    best,
    best_two,
    draw,
    draw_buffers,
    log_total,
    spread,
)
from onebase.engine.logits_processors import forbid, penalize
from onebase.engine.request import Request
from onebase.errors import UsageError
from onebase.language import say

_MAX_SCALE = 1e30  # a temperature below its inverse changes nothing: one token is left already


class Draw(NamedTuple):
    """One drawn token. `margin` is the distance between the two best logits that it was chosen by.

    With `Sampling.logprobs`, `logprob` (nats) is the token's under the model's own distribution and
    `top` has the best tokens there with theirs, best first. For a measured request,
    `policy_logprob` and `entropy` (nats) are those at the sampling's temperature, before anything
    is cut off.

    `complete` says that the request's constraint lets nothing but an end follow. `error` says why no
    token could be drawn; `token` is -1 then.
    """

    token: int
    margin: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    policy_logprob: float | None = None
    entropy: float | None = None
    complete: bool = False
    error: str = ""


class Sampler:
    """Draws for any mix of requests. A row's outcome depends on that row and its request alone, bit
    for bit. Among equal logits the token with the lowest id is the best.

    The order is vLLM's: constraint, bias, penalties, temperature, min_p, top_k, top_p. End tokens are
    left out before `min_tokens`, unless nothing else is left.
    """

    def __init__(self) -> None:
        self._said: WeakKeyDictionary[Request, _Said] = WeakKeyDictionary()
        self._constraints: WeakKeyDictionary[Request, ConstraintState] = WeakKeyDictionary()
        self._buffers = draw_buffers(0)

    def admit(self, request: Request, vocabulary: int) -> None:
        """Get ready for a request whose logits will have `vocabulary` numbers. Without this call, it
        happens at the first draw. Raises UsageError for a constraint or a bias that can't be applied.
        """
        beyond = [token for token in request.sampling.logit_bias if token >= vocabulary]
        if beyond:
            raise UsageError(
                say(
                    f"logit_bias names the token {beyond[0]}.",
                    f"logit_bias 中的词元编号为 {beyond[0]}。",
                ),
                say(
                    f"Use token ids from 0 to {vocabulary - 1}.",
                    f"词元编号应在 0 到 {vocabulary - 1} 之间。",
                ),
            )
        constraint = request.sampling.constraint
        if constraint is not None and request not in self._constraints:
            tokenizer = request.base.tokenizer
            self._constraints[request] = ConstraintState(constraint, tokenizer, request.ends)

    def prepare(self, requests: Sequence[Request]) -> None:
        """Begin what the next draws need besides logits. To be called before the pass."""
        for request in requests:
            if request in self._constraints:
                self._constraints[request].start()

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[Draw]:
        """The next token of each request from its row of `logits`, [requests, vocabulary]."""
        plain = [_is_plain(request) for request in requests]
        if logits.device.type != "cpu" and all(plain):
            return _greedy_on_device(logits)
        rows: Floats = logits.detach().float().cpu().contiguous().numpy()
        tokens = np.empty(len(rows), np.int64)
        values = np.empty((len(rows), 2), np.float32)
        best_two(rows, tokens, values)
        return [
            _checked(Draw(token, first - second), first)
            if is_plain
            else self._draw(row, first, request)
            for row, token, (first, second), request, is_plain in zip(
                rows, tokens.tolist(), values.tolist(), requests, plain, strict=True
            )
        ]

    def _draw(self, row: Floats, raw_best: float, request: Request) -> Draw:
        sampling = request.sampling
        self.admit(request, len(row))
        if len(self._buffers[0]) != len(row):
            self._buffers = draw_buffers(len(row))
        constraint = self._constraints.get(request)
        processed = self._processed(row, request, constraint)
        if constraint is not None and constraint.error:
            return Draw(-1, 0.0, error=constraint.error)
        token, first, margin = _best(processed)
        if sampling.temperature > 0:
            random = float(torch.rand((), dtype=torch.float64, generator=request.generator))
            cut = (sampling.top_k, sampling.top_p, sampling.min_p)
            scale = min(1 / sampling.temperature, _MAX_SCALE)
            token = draw(processed, first, scale, cut, random, self._buffers)
        drawn = _checked(Draw(token, margin), first)
        if constraint is not None and not drawn.error:
            constraint.advance(token)
            drawn = drawn._replace(complete=constraint.complete)
        if drawn.error:
            return drawn
        if sampling.logprobs is not None:
            total = raw_best + log_total(row, raw_best)
            drawn = drawn._replace(
                logprob=float(row[token]) - total, top=self._top(row, sampling.logprobs, total)
            )
        if request.measured:
            scale = min(1 / (sampling.temperature or 1.0), _MAX_SCALE)
            total, mean = spread(row, raw_best, scale)
            drawn = drawn._replace(
                policy_logprob=(float(row[token]) - raw_best) * scale - total,
                entropy=total - mean,
            )
        return drawn

    def _processed(
        self, row: Floats, request: Request, constraint: ConstraintState | None
    ) -> Floats:
        """The logits that the choice is made by: `row` itself where nothing changes it."""
        sampling = request.sampling
        too_early = [end for end in _too_early(request) if end < len(row)]
        if not (constraint or sampling.logit_bias or sampling.penalized or too_early):
            return row
        row = row.copy()
        if constraint is not None:
            forbid(row, constraint.mask())
        if sampling.logit_bias:
            row[list(sampling.logit_bias)] += np.array([*sampling.logit_bias.values()], np.float32)
        if sampling.penalized:
            said = self._said.get(request)
            if said is None:
                said = self._said[request] = _Said(request, len(row))
            said.read()
            penalize(
                row,
                said.seen,
                said.counts,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        if too_early:
            ends = row[too_early]
            row[too_early] = -np.inf
            if _best(row)[1] == -np.inf:
                row[too_early] = ends
        return row

    def _top(self, row: Floats, count: int, total: float) -> tuple[tuple[int, float], ...]:
        _, _, tokens, values = self._buffers
        found = best(row, count, tokens, values) if count else 0
        return tuple(
            (token, value - total)
            for token, value in zip(tokens[:found].tolist(), values[:found].tolist(), strict=True)
        )


class _Said:
    """Which tokens are in a request's prompt and answer, and how often in the answer."""

    def __init__(self, request: Request, vocabulary: int) -> None:
        self.seen = np.zeros(vocabulary, np.float32)
        self.counts = np.zeros(vocabulary, np.float32)
        self.seen[[token for token in request.prompt if token >= 0]] = 1
        self._tokens = request.tokens
        self._read = 0

    def read(self) -> None:
        """Take in the tokens that have come since."""
        for token in self._tokens[self._read :]:
            self.seen[token] = 1
            self.counts[token] += 1
        self._read = len(self._tokens)


def _is_plain(request: Request) -> bool:
    """Whether its token is the best one of the model's own logits, and nothing more is asked."""
    sampling = request.sampling
    return (
        sampling.temperature == 0
        and sampling.logprobs is None
        and sampling.constraint is None
        and not (request.measured or sampling.penalized or sampling.logit_bias)
        and not _too_early(request)
    )


def _too_early(request: Request) -> list[int]:
    """The end tokens, as long as the answer is too short to end."""
    early = len(request.tokens) < request.sampling.min_tokens
    return sorted(request.ends) if early else []


def _checked(drawn: Draw, best_logit: float) -> Draw:
    """`drawn`, or its error where no logit was finite: there is nothing to choose by."""
    if math.isfinite(best_logit) and drawn.token >= 0:
        return drawn
    return Draw(-1, 0.0, error=not_finite())


def not_finite() -> str:
    """The error of a request whose logits give nothing to choose by."""
    return say("the logits are not finite", "模型输出的 logits 不是有限值")


def _best(row: Floats) -> tuple[int, float, float]:
    """The best token of one row, its logit, and how far the second best is away."""
    token, values = np.empty(1, np.int64), np.empty((1, 2), np.float32)
    best_two(row[None], token, values)
    first, second = values[0].tolist()
    return int(token[0]), first, first - second


def _greedy_on_device(logits: Tensor) -> list[Draw]:
    """The best tokens, without moving all logits from the device."""
    first, tokens = logits.max(-1)
    second = logits.scatter(1, tokens[:, None], -torch.inf).max(-1).values
    found = zip(tokens.tolist(), first.tolist(), second.tolist(), strict=True)
    return [_checked(Draw(token, one - two), one) for token, one, two in found]
