"""The choice of each request's next token from its logits."""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from onebase.engine.distribution import (
    Floats,
    best,
    best_two,
    draw,
    draw_buffers,
    penalize,
    spread,
)
from onebase.engine.request import Request

_MAX_SCALE = 1e30  # a temperature below its inverse changes nothing: one token is left already


class Draw(NamedTuple):
    """One drawn token. `margin` is the distance between the two best logits that it was chosen by.

    With `Sampling.logprobs`, `logprob` (nats) is the token's under the model's own distribution and
    `top` has the best tokens there with theirs, best first. For a measured request,
    `policy_logprob` and `entropy` (nats) are those at the sampling's temperature, before anything
    is cut off.
    """

    token: int
    margin: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    policy_logprob: float | None = None
    entropy: float | None = None


class Sampler:
    """Draws for any mix of requests. A row's outcome depends on that row and its request alone, bit
    for bit. Among equal logits the token with the lowest id is the best.

    The order is vLLM's: bias, penalties, end tokens before `min_tokens`, temperature, min_p, top_k,
    top_p.
    """

    def __init__(self) -> None:
        self._said: WeakKeyDictionary[Request, _Said] = WeakKeyDictionary()
        self._buffers = draw_buffers(0)

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[Draw]:
        """The next token of each request from its row of `logits`, [requests, vocabulary]."""
        if logits.device.type != "cpu" and all(
            _is_plain(request) and not _forbidden(request) for request in requests
        ):
            return _greedy_on_device(logits)
        rows: Floats = logits.detach().float().cpu().contiguous().numpy()
        tokens = np.empty(len(rows), np.int64)
        values = np.empty((len(rows), 2), np.float32)
        best_two(rows, tokens, values)
        margins = (values[:, 0] - values[:, 1]).tolist()
        return [
            Draw(token, margin)
            if _is_plain(request) and token not in _forbidden(request)
            else self._draw(row, float(top), request)
            for row, token, margin, top, request in zip(
                rows, tokens.tolist(), margins, values[:, 0], requests, strict=True
            )
        ]

    def _draw(self, row: Floats, raw_best: float, request: Request) -> Draw:
        sampling = request.sampling
        if len(self._buffers[0]) != len(row):
            self._buffers = draw_buffers(len(row))
        chosen_by = self._processed(row, request)
        token, top, margin = _best(chosen_by)
        if sampling.temperature > 0:
            random = float(torch.rand((), dtype=torch.float64, generator=request.generator))
            cut = (sampling.top_k, sampling.top_p, sampling.min_p)
            scale = min(1 / sampling.temperature, _MAX_SCALE)
            drawn = draw(chosen_by, top, scale, cut, random, self._buffers)
            token = drawn if drawn >= 0 else token
        made = Draw(token, margin)
        if sampling.logprobs is not None:
            total = raw_best + spread(row, raw_best, 1.0)[0]
            made = made._replace(
                logprob=float(row[token]) - total, top=self._top(row, sampling.logprobs, total)
            )
        if request.measured:
            scale = min(1 / (sampling.temperature or 1.0), _MAX_SCALE)
            log_total, mean = spread(row, raw_best, scale)
            made = made._replace(
                policy_logprob=(float(row[token]) - raw_best) * scale - log_total,
                entropy=log_total - mean,
            )
        return made

    def _processed(self, row: Floats, request: Request) -> Floats:
        """The logits that the choice is made by: `row` itself where nothing changes it."""
        sampling = request.sampling
        forbidden = _forbidden(request)
        if not (sampling.logit_bias or sampling.penalized or forbidden):
            return row
        row = row.copy()
        for token, bias in sampling.logit_bias.items():
            row[token] += np.float32(bias)
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
        for token in forbidden:
            row[token] = -np.inf
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
        and not (request.measured or sampling.penalized or sampling.logit_bias)
    )


def _forbidden(request: Request) -> frozenset[int]:
    """The end tokens, as long as the answer is too short to end."""
    early = len(request.tokens) < request.sampling.min_tokens
    return request.ends if early else frozenset()


def _best(row: Floats) -> tuple[int, float, float]:
    """The best token of one row, its logit, and how far the second best is away."""
    token, values = np.empty(1, np.int64), np.empty((1, 2), np.float32)
    best_two(row[None], token, values)
    return int(token[0]), float(values[0, 0]), float(values[0, 0] - values[0, 1])


def _greedy_on_device(logits: Tensor) -> list[Draw]:
    """The best tokens, without moving all logits from the device."""
    first, tokens = logits.max(-1)
    second = logits.scatter(1, tokens[:, None], -torch.inf).max(-1).values
    margins = (first - second).tolist()
    return [Draw(*pair) for pair in zip(tokens.tolist(), margins, strict=True)]
