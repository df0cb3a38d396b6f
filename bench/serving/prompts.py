"""Prompts and adapters for all sides: token ids of the demo's inputs, and small random weights."""

import json
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.model.base import Base

METHODS = ("lora", "ia3", "prompt-tuning", "p-tuning-v2")
INPUTS = ("content", "prompt", "input", "question")
# Spread of the random weights: large enough to change most answers, small enough to keep them text.
_SPREAD = {"lora": 0.1, "ia3": 0.15, "prompt-tuning": 0.03, "p-tuning-v2": 0.2}


def texts() -> list[str]:
    """The inputs of the demo's rows, in a fixed order."""
    folder = files("onebase.demo") / "en"
    inputs = []
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                inputs += [row[key] for key in INPUTS if key in row][:1]
                inputs += [turn["content"] for turn in row.get("messages", [])[:1]]
    random.Random(0).shuffle(inputs)
    return inputs


def prompt_ids(tokenizer: Any, count: int) -> list[list[int]]:
    """Different chat prompts of about 20 to 90 tokens."""
    template = Template(tokenizer)
    asked = texts()
    return [
        template.prompt(asked[at % len(asked)] + ("" if at < len(asked) else f" ({at})"))
        for at in range(count)
    ]


def long_prompt_ids(tokenizer: Any, count: int, tokens: int) -> list[list[int]]:
    """Prompts of exactly `tokens` tokens, no two with the same beginning."""
    text = " ".join(texts())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    drawn = random.Random(1)
    while len(ids) < tokens + 64:
        ids = ids + ids
    starts = [drawn.randrange(len(ids) - tokens) for _ in range(count)]
    return [
        [*tokenizer(f"{at}:")["input_ids"], *ids[start:]][:tokens]
        for at, start in enumerate(starts)
    ]


def random_adapter(base: Base, method: str, seed: int) -> Adapter:
    """An adapter with small random weights: r=8 on all linear layers, or 20 virtual tokens."""
    settings = {"rank": 8} if method == "lora" else {}
    adapter = build_adapter(base, method, settings, init_text="Answer the question.", seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if ".a." in name:
                continue  # LoRA's A keeps its initial values
            spread = _SPREAD[method] * (float(parameter.std()) if method == "p-tuning-v2" else 1)
            parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=spread)
    return adapter


def store_adapters(
    base: Base, folder: Path, count: int, methods: Sequence[str] = METHODS, *, prefix: str = "t"
) -> list[tuple[str, str]]:
    """Store `count` adapters in the workspace `folder`, as tasks t0, t1, … with `methods` in turn. Returns pairs of
    task and folder.
    """
    store = AdapterStore(Workspace(folder))
    kept: list[tuple[str, str]] = []
    for at in range(count):
        method = methods[at % len(methods)]
        adapter = random_adapter(base, method, at)
        record = {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "method": method,
            "template": Template(base.tokenizer).config(),
        }
        stored = store.add(f"{prefix}{at}", lambda to, a=adapter: save_adapter(a, to, base), record)
        kept.append((stored.task, str(stored.path)))
    return kept
