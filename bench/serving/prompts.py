"""The prompts and adapters that all sides get: token ids of the demo's inputs, random small weights."""

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
# Of the random weights: most answers change, and stay a text.
_SPREAD = {"lora": 0.1, "ia3": 0.15, "prompt-tuning": 0.03, "p-tuning-v2": 0.2}


def texts() -> list[str]:
    """What the demo's rows ask, in a fixed order."""
    folder = files("onebase.demo") / "en"
    found = []
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found += [row[key] for key in INPUTS if key in row][:1]
                found += [turn["content"] for turn in row.get("messages", [])[:1]]
    random.Random(0).shuffle(found)
    return found


def prompt_ids(tokenizer: Any, count: int) -> list[list[int]]:
    """Chat prompts of about 20 to 90 tokens, each another."""
    template = Template(tokenizer)
    asked = texts()
    return [
        template.prompt(asked[at % len(asked)] + ("" if at < len(asked) else f" ({at})"))
        for at in range(count)
    ]


def long_prompt_ids(tokenizer: Any, count: int, tokens: int) -> list[list[int]]:
    """Prompts of exactly so many tokens, no two with the same beginning."""
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
    """An adapter of random small weights: r=8 on all linear layers, or 20 virtual tokens."""
    settings = {"rank": 8} if method == "lora" else {}
    adapter = build_adapter(base, method, settings, init_text="Answer the question.", seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if ".a." in name:
                continue  # as LoRA starts it
            spread = _SPREAD[method] * (float(parameter.std()) if method == "p-tuning-v2" else 1)
            parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=spread)
    return adapter


def store_adapters(
    base: Base, folder: Path, count: int, methods: Sequence[str] = METHODS, *, prefix: str = "t"
) -> list[tuple[str, str]]:
    """Put so many adapters into the workspace `folder`, tasks t0, t1, … of `methods` in turn.
    Returns (task, folder of its files).
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
