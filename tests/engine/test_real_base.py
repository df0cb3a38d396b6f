"""Isolation on the embedded base, SmolLM2-135M, where language and size are real."""

import pytest
import torch

from onebase.adapters.contribution import Contribution
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.compiled import compiled
from onebase.engine.generation import Batch, Stream
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


def answered(
    base: Base, contributions: dict[str, Contribution], prompts: list[tuple[str, tuple[int, ...]]]
) -> list[Stream]:
    batch = Batch(base, contributions)
    streams = [Stream(task, ids, Sampling(max_tokens=16)) for task, ids in prompts]
    for stream in streams:
        batch.submit(stream)
    while not batch.idle:
        batch.step()
    return streams


@pytest.mark.slow
def test_64_mixed_requests_of_8_tasks_give_what_each_gives_alone() -> None:
    base = Base.load()
    contributions, templates = {}, {}
    for seed in range(8):
        instruction = INSTRUCTIONS[seed % 4]
        adapter = build_adapter(base, METHODS[seed % 4], {}, init_text=instruction, seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        contributions[f"t{seed}"] = compiled(base, adapter)
        templates[f"t{seed}"] = Template(base.tokenizer, instruction=instruction)
    names = list(contributions)
    prompts = [
        (name, tuple(templates[name].prompt(f"{PROMPTS[i % 5]} ({i})")))
        for i, name in ((i, names[i % 8]) for i in range(64))
    ]
    mixed = answered(base, contributions, prompts)
    assert len({tuple(stream.tokens) for stream in mixed}) > 30
    near_ties = []
    for prompt, together in zip(prompts, mixed, strict=True):
        alone = answered(base, contributions, [prompt])[0]
        if alone.tokens == together.tokens:
            continue
        pairs = zip(alone.tokens, together.tokens, strict=False)
        first = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        at = min(len(alone.tokens), len(together.tokens)) if first is None else first
        near_ties.append(alone.margins[at])
        assert alone.margins[at] < 1e-4, (prompt[0], at, alone.margins[at])
    print(f"{len(near_ties)} of 64 differ, at margins {near_ties}")
