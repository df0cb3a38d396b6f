"""A request on its way: its prompt, what it has said so far, and how much of it is computed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from onebase.adapters.contribution import Contribution, merged
from onebase.engine.pool import LoadedTask
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

# "error": the pass that the request was in failed.
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Token:
    """One token as it is reported. `logprob` (nats) is that of the raw distribution, None where
    nobody asked or nothing predicts the token; `top` holds the most likely tokens with their
    log-probabilities, as many as asked for; `text` is the token's own text.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    text: str


@dataclass(eq=False)
class Request:
    """One request. `tasks` are what answers it, the task first, a user's own adapter behind it:
    objects, so that it finishes on the versions it began with. A negative id in `prompt` is a placed
    virtual token (-1 is the first). At most `limit` tokens are generated: `sampling.max_tokens`, or
    fewer where the base's context has no room for them. It ends at any of the tokens in `ends`.

    `tokens` are the generated ones, without the end token, which is `ended_by`. `computed` counts
    the ids, prompt and tokens, whose keys and values are in the cache. `text` is what has been
    given out so far.

    `steady` says that somebody watches its tokens come: steps beside it are kept short. `margins`
    holds the distance between the two best logits at every draw. Where it is `measured`, `logprobs`
    and `entropies` (nats) are those of every draw, that of the end token too, at the sampling's
    temperature and before anything is cut off. With `score_from`, `prompt_logprobs` has the prompt's
    tokens from that index on.
    """

    tasks: tuple[LoadedTask, ...]
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    ends: frozenset[int] = frozenset()
    score_from: int | None = None
    measured: bool = False
    steady: bool = True

    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    text: str = ""
    finish_reason: FinishReason | None = None
    ended_by: int | None = None
    margins: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    prompt_logprobs: list[Token] = field(default_factory=list)
    generator: torch.Generator | None = None
    arrived: float = field(default_factory=time.perf_counter)
    admitted: float | None = None

    @property
    def base(self) -> Base:
        """What it is answered on."""
        return self.tasks[0].base

    @cached_property
    def contribution(self) -> Contribution:
        """What its tasks contribute together."""
        return merged([task.contribution for task in self.tasks])

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the generated tokens. A new tuple: see `between`."""
        return (*self.prompt, *self.tokens)

    def between(self, start: int, stop: int) -> Sequence[int]:
        """ids[start:stop], with no work for the others."""
        prompt = len(self.prompt)
        if start >= prompt:
            return self.tokens[start - prompt : stop - prompt]
        if stop <= prompt:
            return self.prompt[start:stop]
        return (*self.prompt[start:], *self.tokens[: stop - prompt])

    @property
    def length(self) -> int:
        """How many ids there are."""
        return len(self.prompt) + len(self.tokens)

    @property
    def max_length(self) -> int:
        """The most ids that there can be."""
        return len(self.prompt) + self.limit

    @property
    def wanted(self) -> int:
        """How many ids have to be computed now. A prompt that is only scored is not read to its end:
        nothing is predicted from its last token.
        """
        return self.length if self.limit else self.length - 1

    @property
    def reusable(self) -> int:
        """How many of the prompt's ids may have their keys and values from elsewhere: all whose
        logits nobody needs.
        """
        most = len(self.prompt) - 1
        return most if self.score_from is None else max(0, min(most, self.score_from - 1))


@dataclass(frozen=True)
class Chunk:
    """What one pass computes of a request: ids[computed : computed + length]. Logits are wanted of
    the last `logits` of these rows: none inside a prompt, one as a rule, more where it is scored.
    """

    request: Request
    length: int
    logits: int

    @property
    def ids(self) -> Sequence[int]:
        """The ids to compute."""
        start = self.request.computed
        return self.request.between(start, start + self.length)
