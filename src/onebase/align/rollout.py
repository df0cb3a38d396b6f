"""Rollouts: answers sampled from the policy, by the engine's batched generation."""

from collections.abc import Sequence
from dataclasses import dataclass

from onebase.adapters.adapter import Adapter
from onebase.align.answers import PromptAnswer
from onebase.align.rewards import Prompt
from onebase.data.template import Template
from onebase.engine.batch import Batch
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt import request_for
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.request import Request
from onebase.engine.runner import runner_for
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

POLICY = "policy"
SLOTS = 64


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt: its tokens, with the end (a token, or a text of the template) where it
    `ended`, and its text without the end. `logprobs` and `entropies` (nats) are those of the policy at
    every token of the answer.
    """

    prompt: Prompt
    tokens: PromptAnswer
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
    """Sample an answer to each prompt from the policy as it is now, without dropout. An answer ends where
    `template` ends answers, or at the end of the base's context. With a seed, the samples depend on the
    seed and the prompt's index alone. Raises UsageError for a prompt that leaves no room.
    """
    batch = Batch(runner_for(base, slots=SLOTS), slots=SLOTS)
    task = LoadedTask(POLICY, 0, template, with_prompt_kv(batch.runner, policy), base)
    requests = []
    for index, prompt in enumerate(prompts):
        prompt_sampling = sampling
        if sampling.seed is not None:
            seed = (sampling.seed + index) % (1 << 62)
            prompt_sampling = sampling.model_copy(update={"seed": seed})
        request = request_for((task,), prompt.ids, prompt_sampling)
        request.streamed = request.emit_events = False
        request.record_draws = True
        requests.append(request)
        batch.add(request)
    while not batch.idle:
        batch.step()
    return [
        Rollout(
            prompt,
            _tokens(request),
            request.text,
            request.finish_reason == "stop",
            tuple(request.logprobs),
            tuple(request.entropies),
        )
        for prompt, request in zip(prompts, requests, strict=True)
    ]


def _tokens(request: Request) -> PromptAnswer:
    end = () if request.ended_by is None else (request.ended_by,)
    return PromptAnswer(request.prompt, (*request.tokens, *end))
