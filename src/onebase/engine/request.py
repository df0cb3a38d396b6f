"""A request: its prompt, the answer so far, and how much of both is in the KV cache."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from onebase.adapters.contribution import Contribution, merged
from onebase.engine.detokenizer import Detokenizer
from onebase.engine.pool import LoadedTask
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base

# "error": the step that the request took part in failed.
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Token:
    """One reported token. `logprob` (nats) is its log-probability under the model's own distribution;
    None if it was not requested or nothing predicts the token. `top` has the requested number of
    most likely tokens with their log-probabilities. `text` is the token's text, if requested.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""


@dataclass(eq=False)
class Request:
    """One request. `tasks` answer it together: the task, then a user's own adapters. They are objects,
    so that a request finishes on the versions it began with. A negative id in `prompt` is a placed
    virtual token (-1 is the first). At most `limit` tokens are generated: `sampling.max_tokens`,
    fewer if the base's context has no room for them, none if the prompt is only scored. Any token of
    `ends` ends the answer. With `score_from`, the log-probabilities of the prompt's tokens from that
    index on are recorded.

    `streamed`: a client reads the tokens as they come, so prefill beside it is kept short.
    `emit_events`: the engine's `step` returns events for it. `record_draws`: fill `logprobs` and
    `entropies`.
    """

    tasks: tuple[LoadedTask, ...]
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    ends: frozenset[int] = frozenset()
    score_from: int | None = None
    streamed: bool = True
    emit_events: bool = True
    record_draws: bool = False
    generator: torch.Generator | None = None

    # The generated tokens. The end token is not among them; it is `ended_by`.
    tokens: list[int] = field(default_factory=list, init=False)
    ended_by: int | None = field(default=None, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: str = field(default="", init=False)  # the reason for "error", if known
    # How many of the ids (prompt and tokens) have keys and values in the cache.
    computed: int = field(default=0, init=False)
    # The visible text, in the parts that were emitted.
    text_parts: list[str] = field(default_factory=list, init=False)
    detokenizer: Detokenizer | None = field(default=None, init=False)
    # The distance between the two highest logits at every draw.
    margins: list[float] = field(default_factory=list, init=False)
    # With `record_draws`, for every sampled token, the end token included: its log-probability and
    # the distribution's entropy (nats), at the sampling temperature, before min_p, top_k and top_p.
    logprobs: list[float] = field(default_factory=list, init=False)
    entropies: list[float] = field(default_factory=list, init=False)
    prompt_logprobs: list[Token] = field(default_factory=list, init=False)
    # In seconds of time.perf_counter.
    arrived: float = field(default_factory=time.perf_counter, init=False)
    admitted: float | None = field(default=None, init=False)

    @property
    def base(self) -> Base:
        """The base that answers it."""
        return self.tasks[0].base

    @cached_property
    def contribution(self) -> Contribution:
        """The merged contribution of its tasks."""
        return merged([task.contribution for task in self.tasks])

    @property
    def text(self) -> str:
        """The visible text so far."""
        return "".join(self.text_parts)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the generated tokens. Each call copies them; `ids_between` copies a slice."""
        return (*self.prompt, *self.tokens)

    def ids_between(self, start: int, stop: int) -> Sequence[int]:
        """ids[start:stop], without copying the others."""
        prompt = len(self.prompt)
        if start >= prompt:
            return self.tokens[start - prompt : stop - prompt]
        if stop <= prompt:
            return self.prompt[start:stop]
        return (*self.prompt[start:], *self.tokens[: stop - prompt])

    @property
    def length(self) -> int:
        """The number of ids."""
        return len(self.prompt) + len(self.tokens)

    @property
    def max_length(self) -> int:
        """The largest possible number of ids."""
        return len(self.prompt) + self.limit

    @property
    def target_length(self) -> int:
        """How many ids have to be computed before the next token is sampled, or the scoring is done.
        The last token of a prompt that is only scored is not computed: it predicts nothing.
        """
        return self.length if self.limit else self.length - 1

    @property
    def reusable(self) -> int:
        """How many of the prompt's ids may take their keys and values from a cache: those whose logits
        are not needed.
        """
        most = min(len(self.prompt), self.target_length) - 1
        return max(0, most if self.score_from is None else min(most, self.score_from - 1))

    def failure(self) -> OnebaseError:
        """The error to raise for a request that ended with "error"."""
        if self.error:
            return OnebaseError(
                say(
                    f"No answer could be generated: {self.error}.", f"无法生成回答：{self.error}。"
                ),
                say("Change the request, or use another base.", "请修改请求，或换用其他基座。"),
            )
        return OnebaseError(
            say(
                "The model's forward pass failed in another thread.",
                "模型的前向计算在另一个线程中失败。",
            ),
            say("See that thread's error, and try again.", "请查看该线程的错误后重试。"),
        )


@dataclass(frozen=True, eq=False)
class Chunk:
    """The part of a request that one pass computes: ids[computed : computed + length]. The pass
    returns the logits of the last `logits` of these rows: none inside a prompt, usually one at its
    end, more where the prompt is scored.
    """

    request: Request
    length: int
    logits: int

    @property
    def ids(self) -> Sequence[int]:
        """The ids to compute."""
        start = self.request.computed
        return self.request.ids_between(start, start + self.length)


@dataclass(frozen=True)
class Event:
    """The result of a step for one request: the `text` that became visible and the `tokens` that were
    generated, either of which may be empty, and the finish reason, if it ended.
    """

    request: Request
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
