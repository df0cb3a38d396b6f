"""Rollouts: a policy's own answers, by the engine's batched generation."""

from collections.abc import Sequence
from dataclasses import dataclass

from onebase.adapters.adapter import Adapter
from onebase.align.answers import Answered
from onebase.align.rewards import Prompt
from onebase.data.template import Template
from onebase.engine.compiled import compiled
from onebase.engine.generation import Batch, Stream
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.model.ends import end_tokens

POLICY = "policy"
SLOTS = 64


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt: its tokens, with the end that it came to where it `ended` (a token, or
    a text of the template's), and its text without that end.
    `logprobs` and `entropies` (nats) are those of the policy at every token of the answer.
    """

    prompt: Prompt
    tokens: Answered
    text: str
    ended: bool
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]


def roll_out(
    base: Base,
    policy: Adapter,
    template: Template,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[Rollout]:
    """An answer to each prompt, drawn from the policy as it is now, which ends where training by
    `template` taught it. With a seed, the draws depend on it and the prompt's place alone.
    """
    mode = policy.training
    ends = end_tokens(base, template)
    batch = Batch(base, {POLICY: compiled(base, policy)}, slots=SLOTS, ends=ends)
    sampling = sampling.model_copy(update={"stop": (*sampling.stop, *template.stops)})
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
            stream.finish_reason == "stop",
            tuple(stream.logprobs),
            tuple(stream.entropies),
        )
        for prompt, stream in zip(prompts, streams, strict=True)
    ]


def _tokens(stream: Stream) -> Answered:
    end = () if stream.ended_by is None else (stream.ended_by,)
    return Answered(stream.prompt, (*stream.tokens, *end))
