"""Sampling: the choice of each request's next token from its logits."""

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
    log_sum_exp,
    log_sum_exp_and_mean,
    sample_token,
    sampling_buffers,
    top_tokens,
    top_two,
)
from onebase.engine.logits_processors import forbid, penalize
from onebase.engine.request import Request
from onebase.errors import UsageError
from onebase.language import say

_MAX_SCALE = 1e30  # 1 / temperature is clipped: by then, only one token has any probability


class Draw(NamedTuple):
    """One sampled token. `margin` is the distance between the two highest processed logits.

    With `Sampling.logprobs`, `logprob` (nats) is the token's log-probability under the model's own
    distribution, and `top` has the most likely tokens with theirs, best first. With
    `Request.record_draws`, `policy_logprob` and `entropy` (nats) are those of the distribution at the
    sampling temperature, before min_p, top_k and top_p.

    `complete`: the request's constraint allows only an end token next. `error` is the reason why no
    token could be sampled; `token` is then -1.
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
    """Samples for any mix of requests. The result for a row depends only on that row and its request,
    bit for bit. Among equal logits, the token with the lowest id is the best.

    The order is vLLM's: constraint, bias, penalties, temperature, min_p, top_k, top_p. End tokens are
    excluded before `min_tokens`, unless no other token is possible.
    """

    def __init__(self) -> None:
        self._token_counts: WeakKeyDictionary[Request, _TokenCounts] = WeakKeyDictionary()
        self._constraints: WeakKeyDictionary[Request, ConstraintState] = WeakKeyDictionary()
        self._buffers = sampling_buffers(0)

    def admit(self, request: Request, vocabulary: int) -> None:
        """Prepare a request whose logits will have `vocabulary` values. Without this call, its first
        sample does it. Raises UsageError for a constraint or a bias that cannot be applied.
        """
        out_of_range = [token for token in request.sampling.logit_bias if token >= vocabulary]
        if out_of_range:
            raise UsageError(
                say(
                    f"logit_bias has the token id {out_of_range[0]}, which is out of range.",
                    f"logit_bias 中的词元编号 {out_of_range[0]} 超出范围。",
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
        """Start computing what the next samples need besides logits. Call it before the pass."""
        for request in requests:
            if request in self._constraints:
                self._constraints[request].start()

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[Draw]:
        """The next token of each request from its row of `logits`, [requests, vocabulary]."""
        greedy = [_is_greedy(request) for request in requests]
        if logits.device.type != "cpu" and all(greedy):
            return _greedy_on_device(logits)
        rows: Floats = logits.detach().float().cpu().contiguous().numpy()
        tokens = np.empty(len(rows), np.int64)
        values = np.empty((len(rows), 2), np.float32)
        top_two(rows, tokens, values)
        return [
            _checked(Draw(token, first - second), first)
            if is_greedy
            else self._draw(row, first, request)
            for row, token, (first, second), request, is_greedy in zip(
                rows, tokens.tolist(), values.tolist(), requests, greedy, strict=True
            )
        ]

    def _draw(self, row: Floats, max_logit: float, request: Request) -> Draw:
        sampling = request.sampling
        self.admit(request, len(row))
        if len(self._buffers[0]) != len(row):
            self._buffers = sampling_buffers(len(row))
        constraint = self._constraints.get(request)
        processed = self._processed(row, request, constraint)
        if constraint is not None and constraint.error:
            return Draw(-1, 0.0, error=constraint.error)
        token, first, margin = _best(processed)
        if sampling.temperature > 0:
            random = float(torch.rand((), dtype=torch.float64, generator=request.generator))
            cut = (sampling.top_k, sampling.top_p, sampling.min_p)
            scale = min(1 / sampling.temperature, _MAX_SCALE)
            token = sample_token(processed, first, scale, cut, random, self._buffers)
        drawn = _checked(Draw(token, margin), first)
        if constraint is not None and not drawn.error:
            constraint.advance(token)
            drawn = drawn._replace(complete=constraint.complete)
        if drawn.error:
            return drawn
        if sampling.logprobs is not None:
            normalizer = max_logit + log_sum_exp(row, max_logit)
            drawn = drawn._replace(
                logprob=float(row[token]) - normalizer,
                top=self._top(row, sampling.logprobs, normalizer),
            )
        if request.record_draws:
            scale = min(1 / (sampling.temperature or 1.0), _MAX_SCALE)
            normalizer, mean = log_sum_exp_and_mean(row, max_logit, scale)
            drawn = drawn._replace(
                policy_logprob=(float(row[token]) - max_logit) * scale - normalizer,
                entropy=normalizer - mean,
            )
        return drawn

    def _processed(
        self, row: Floats, request: Request, constraint: ConstraintState | None
    ) -> Floats:
        """The logits after constraint, bias, penalties and `min_tokens`; `row` itself if none applies."""
        sampling = request.sampling
        excluded_ends = [end for end in _excluded_ends(request) if end < len(row)]
        if not (constraint or sampling.logit_bias or sampling.penalized or excluded_ends):
            return row
        row = row.copy()
        if constraint is not None:
            forbid(row, constraint.mask())
        if sampling.logit_bias:
            row[list(sampling.logit_bias)] += np.array([*sampling.logit_bias.values()], np.float32)
        if sampling.penalized:
            history = self._token_counts.get(request)
            if history is None:
                history = self._token_counts[request] = _TokenCounts(request, len(row))
            history.update()
            penalize(
                row,
                history.seen,
                history.counts,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        if excluded_ends:
            end_logits = row[excluded_ends]
            row[excluded_ends] = -np.inf
            if _best(row)[1] == -np.inf:
                row[excluded_ends] = end_logits
        return row

    def _top(self, row: Floats, count: int, normalizer: float) -> tuple[tuple[int, float], ...]:
        _, _, tokens, values = self._buffers
        size = top_tokens(row, count, tokens, values) if count else 0
        return tuple(
            (token, value - normalizer)
            for token, value in zip(tokens[:size].tolist(), values[:size].tolist(), strict=True)
        )


class _TokenCounts:
    """Which tokens are in a request's prompt and answer, and how often each is in the answer."""

    def __init__(self, request: Request, vocabulary: int) -> None:
        self.seen = np.zeros(vocabulary, np.float32)
        self.counts = np.zeros(vocabulary, np.float32)
        self.seen[[token for token in request.prompt if token >= 0]] = 1
        self._tokens = request.tokens
        self._counted = 0

    def update(self) -> None:
        """Count the tokens that were generated since the last call."""
        for token in self._tokens[self._counted :]:
            self.seen[token] = 1
            self.counts[token] += 1
        self._counted = len(self._tokens)


def _is_greedy(request: Request) -> bool:
    """Whether the request only needs the best token of the unchanged logits."""
    sampling = request.sampling
    return (
        sampling.temperature == 0
        and sampling.logprobs is None
        and sampling.constraint is None
        and not (request.record_draws or sampling.penalized or sampling.logit_bias)
        and not _excluded_ends(request)
    )


def _excluded_ends(request: Request) -> list[int]:
    """The end tokens, while the answer is shorter than `min_tokens`."""
    too_short = len(request.tokens) < request.sampling.min_tokens
    return sorted(request.ends) if too_short else []


def _checked(drawn: Draw, max_logit: float) -> Draw:
    """`drawn`, or an error if no logit is finite."""
    if math.isfinite(max_logit) and drawn.token >= 0:
        return drawn
    return Draw(-1, 0.0, error=not_finite())


def not_finite() -> str:
    """The error of a request whose logits are not finite."""
    return say("the logits are not finite", "模型输出的 logits 不是有限值")


def _best(row: Floats) -> tuple[int, float, float]:
    """The best token of one row, its logit, and the distance to the second highest logit."""
    token, values = np.empty(1, np.int64), np.empty((1, 2), np.float32)
    top_two(row[None], token, values)
    first, second = values[0].tolist()
    return int(token[0]), first, first - second


def _greedy_on_device(logits: Tensor) -> list[Draw]:
    """The best tokens, without copying all logits from the device."""
    first, tokens = logits.max(-1)
    second = logits.scatter(1, tokens[:, None], -torch.inf).max(-1).values
    rows = zip(tokens.tolist(), first.tolist(), second.tolist(), strict=True)
    return [_checked(Draw(token, highest - other), highest) for token, highest, other in rows]
