"""A request on its way: its prompt, what it has said so far, and how much of it is computed."""

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
    """One token as it is reported. `logprob` (nats) is that of the model's own distribution, None
    where nobody asked or nothing predicts the token; `top` holds the most likely tokens with their
    log-probabilities, as many as asked for. `text` is the token's own, where they were asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""


@dataclass(eq=False)
class Request:
    """One request. `tasks` are what answers it, the task first, a user's own adapter behind it:
    objects, so that it finishes on the versions it began with. A negative id in `prompt` is a placed
    virtual token (-1 is the first). At most `limit` tokens are generated: `sampling.max_tokens`,
    fewer where the base's context has no room for them, none where the prompt is only scored. Any of
    `ends` ends the answer. With `score_from`, the log-probabilities of the prompt's tokens from that
    index on are noted.

    `steady` says that somebody watches its tokens come, so steps beside it are kept short;
    `reported` that its events are wanted; `measured` that its draws are (see below).
    """

    tasks: tuple[LoadedTask, ...]
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    ends: frozenset[int] = frozenset()
    score_from: int | None = None
    steady: bool = True
    reported: bool = True
    measured: bool = False
    generator: torch.Generator | None = None

    # The generated tokens, without the end token, which is `ended_by`.
    tokens: list[int] = field(default_factory=list, init=False)
    ended_by: int | None = field(default=None, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: str = field(default="", init=False)  # why it ended with "error", where that is known
    # How many of the ids, prompt and tokens, have keys and values in the cache.
    computed: int = field(default=0, init=False)
    # The text in the parts in which it was given out.
    pieces: list[str] = field(default_factory=list, init=False)
    detokenizer: Detokenizer | None = field(default=None, init=False)
    # The distance between the two best logits at every draw.
    margins: list[float] = field(default_factory=list, init=False)
    # Where it is measured, of every draw (that of the end token too) its log-probability and the
    # distribution's entropy, in nats, at the sampling's temperature, before anything is cut off.
    logprobs: list[float] = field(default_factory=list, init=False)
    entropies: list[float] = field(default_factory=list, init=False)
    prompt_logprobs: list[Token] = field(default_factory=list, init=False)
    # In seconds of time.perf_counter.
    arrived: float = field(default_factory=time.perf_counter, init=False)
    admitted: float | None = field(default=None, init=False)

    @property
    def base(self) -> Base:
        """What it is answered on."""
        return self.tasks[0].base

    @cached_property
    def contribution(self) -> Contribution:
        """What its tasks contribute together."""
        return merged([task.contribution for task in self.tasks])

    @property
    def text(self) -> str:
        """What has been given out so far."""
        return "".join(self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the generated tokens. A new tuple each time: see `between`."""
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
        most = min(len(self.prompt), self.wanted) - 1
        return max(0, most if self.score_from is None else min(most, self.score_from - 1))

    def failure(self) -> OnebaseError:
        """What to tell where it ended with "error"."""
        if self.error:
            return OnebaseError(
                say(f"No answer could be drawn: {self.error}.", f"无法生成回答：{self.error}。"),
                say("Change the request, or use another base.", "请修改请求，或换用其他基座。"),
            )
        return OnebaseError(
            say(
                "The pass over the model failed in another thread.",
                "模型的前向计算在另一个线程中失败。",
            ),
            say("See that thread's error, and ask again.", "请查看该线程的错误后重试。"),
        )


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True)
class Event:
    """What a step did for one request: the `text` that became visible and the `tokens` that came,
    neither of which there has to be, and why it ended, if it did.
    """

    request: Request
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
