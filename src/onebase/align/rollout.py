"""Rollouts: a policy's own answers, by the engine's batched generation."""

from collections.abc import Sequence
from dataclasses import dataclass

from onebase.adapters.adapter import Adapter
from onebase.align.answers import Answered
from onebase.align.rewards import Prompt
from onebase.engine.compiled import compiled
from onebase.engine.generation import Batch, Stream
from onebase.engine.sampling import Sampling
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base

POLICY = "policy"
SLOTS = 64


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt: its tokens, with the end token where it `ended`, and its text.
    `logprobs` and `entropies` (nats) are those of the policy at every token of the answer.
    """

    prompt: Prompt
    tokens: Answered
    text: str
    ended: bool
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]


def roll_out(
    base: Base, policy: Adapter, prompts: Sequence[Prompt], sampling: Sampling
) -> list[Rollout]:
    """An answer to each prompt, drawn from the policy as it is now. With a seed, the draws depend on
    it and the prompt's place alone.
    """
    mode = policy.training
    batch = Batch(base, {POLICY: compiled(base, policy)}, slots=SLOTS)
    streams = []
    for index, prompt in enumerate(prompts):
        own = sampling
        if sampling.seed is not None:
            seed = (sampling.seed + index) % (1 << 62)
            own = sampling.model_copy(update={"seed": seed})
        stream = Stream(POLICY, prompt.ids, own, measured=True)
        streams.append(stream)
        batch.submit(stream)
    while not batch.idle:
        batch.step()
    policy.train(mode)
    return [
        Rollout(
            prompt,
            _tokens(stream),
            stream.text,
            stream.ended_by is not None,
            tuple(stream.logprobs),
            tuple(stream.entropies),
        )
        for prompt, stream in zip(prompts, streams, strict=True)
    ]


def _tokens(stream: Stream) -> Answered:
    end = () if stream.ended_by is None else (stream.ended_by,)
    return Answered(stream.prompt, (*stream.tokens, *end))


def require_room(base: Base, prompts: Sequence[Prompt], tokens: int) -> None:
    """Raise DataError where a prompt leaves no room for an answer of so many tokens."""
    if base.context is None:
        return
    for prompt in prompts:
        if len(prompt.ids) + tokens > base.context:
            raise DataError(
                say(
                    f"{prompt.file}:{prompt.line} has {len(prompt.ids)} tokens: {base.name}'s "
                    f"context of {base.context} has no room for {tokens} more.",
                    f"{prompt.file}:{prompt.line} 有 {len(prompt.ids)} 个词元：{base.name} 的上下文"
                    f"长度 {base.context} 放不下另外 {tokens} 个。",
                ),
                say("Shorten the prompt, or lower max_tokens.", "请缩短提示，或减小 max_tokens。"),
            )
