"""Isolation on the embedded base, SmolLM2-135M, where language and size are real."""

import pytest
import torch
from tests.engine.conftest import answered, request_of

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.request import Request
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

METHODS = ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2"]
INSTRUCTIONS = ["Answer in one sentence.", "Write a post.", "Reply to the e-mail.", "Summarise."]
PROMPTS = [
    "Where is my parcel?",
    "The bakery opens a second shop on Friday, next to the old mill.",
    "Hello, I would like to change the name on my invoice. Regards, Mia",
    "Is the lamp dimmable?",
    "type#mug*material#stoneware*color#green",
]


def of(prompts: list[tuple[LoadedTask, tuple[int, ...]]]) -> list[Request]:
    return answered([request_of(task, ids, Sampling(max_tokens=16)) for task, ids in prompts])


@pytest.mark.slow
def test_64_mixed_requests_of_8_tasks_give_what_each_gives_alone() -> None:
    base = Base.load()
    tasks = []
    for seed in range(8):
        instruction = INSTRUCTIONS[seed % 4]
        adapter = build_adapter(base, METHODS[seed % 4], {}, init_text=instruction, seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        served = with_prompt_kv(GenericRunner(base), adapter)
        template = Template(base.tokenizer, instruction=instruction)
        tasks.append(LoadedTask(f"t{seed}", 0, template, served, base))
    prompts = [
        (task, tuple(task.template.prompt(f"{PROMPTS[i % 5]} ({i})")))
        for i, task in ((i, tasks[i % 8]) for i in range(64))
    ]
    mixed = of(prompts)
    assert len({tuple(stream.tokens) for stream in mixed}) > 30
    near_ties = []
    for prompt, together in zip(prompts, mixed, strict=True):
        alone = of([prompt])[0]
        if alone.tokens == together.tokens:
            continue
        pairs = zip(alone.tokens, together.tokens, strict=False)
        first = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        at = min(len(alone.tokens), len(together.tokens)) if first is None else first
        near_ties.append(alone.margins[at])
        assert alone.margins[at] < 1e-4, (prompt[0].task, at, alone.margins[at])
    print(f"{len(near_ties)} of 64 differ, at margins {near_ties}")
