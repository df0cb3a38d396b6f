"""Merging an adapter into its base, and saving the result as a plain Hugging Face model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution, LowRank, Scaling
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer


def check_mergeable(contribution: Contribution, name: str) -> None:
    """Raise UsageError if the adapter `name` has virtual tokens or a prefix, which can't be merged."""
    if contribution.prefix is not None:
        part = say("a prefix of keys and values", "键值前缀")
    elif contribution.virtual is not None or contribution.placed is not None:
        part = say("virtual tokens", "虚拟词元")
    else:
        return
    parts = [contribution.virtual, contribution.placed, contribution.prefix]
    known_to_peft = sum(tensors is not None for tensors in parts) == 1
    known_to_peft &= contribution.placed is None and not contribution.masked_prefix
    if known_to_peft and not contribution.deltas and not contribution.scalings:
        remedy = say(
            "Export it with --to peft; the PEFT library loads it together with the base.",
            "请用 --to peft 导出，PEFT 库可将其与基座一起加载。",
        )
    else:
        remedy = say(
            "Train the task with lora, ia3 or full, which can be merged.",
            "请用可以合并的方法（lora、ia3 或 full）训练该任务。",
        )
    raise UsageError(
        say(
            f"{name} has {part}, which can't be merged into the base.",
            f"{name} 含有{part}，无法合并到基座。",
        ),
        remedy,
    )


def merge(base: Base, contribution: Contribution) -> None:
    """Merge an adapter's contribution into the weights of `base`, which must be in fp32.

    check_mergeable must have accepted the contribution. Only weights change, never biases.
    """
    for name in contribution.deltas.keys() | contribution.scalings.keys():
        linear = base.model.get_submodule(name)
        linear.weight.data = merged(
            linear.weight.data, contribution.deltas.get(name), contribution.scalings.get(name)
        )


def merged(weight: Tensor, delta: LowRank | None, scaling: Scaling | None) -> Tensor:
    """A linear layer's weight, [outputs, inputs], with the changes that the engine applies on the fly:
    `factor * (out * W + scale * b @ a) * in`, each only if present.
    """
    if scaling is not None and not scaling.on_inputs:
        weight = scaling.vector[:, None] * weight
    if delta is not None:
        weight = torch.addmm(weight, delta.b, delta.a, alpha=delta.scale)
        if delta.factor is not None:
            weight = delta.factor[:, None] * weight
    if scaling is not None and scaling.on_inputs:
        weight = weight * scaling.vector
    return weight


def save(base: Base, folder: Path, kind: torch.dtype, ends: Sequence[int]) -> None:
    """Write `base` as a Hugging Face folder with weights of dtype `kind`; converts `base` itself too.

    Its generation_config.json gets the end tokens `ends`. Raises OnebaseError if a weight is too large
    for `kind`, and UsageError for a base whose tokenizer has no class in transformers.
    """
    if isinstance(base.tokenizer, ChatGLMTokenizer):
        raise UsageError(
            say(
                f"{base.name} has ChatGLM's own tokenizer, which transformers can't load from a folder.",
                f"{base.name} 使用 ChatGLM 自带的分词器，transformers 无法从目录加载它。",
            ),
            say("Use --to peft.", "请使用 --to peft。"),
        )
    model: Any = base.model.to(kind)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise too_large(name, str(kind).removeprefix("torch."))
    model.save_pretrained(folder)
    _write_ends(folder / "generation_config.json", ends)
    base.tokenizer.save_pretrained(folder)


def _write_ends(file: Path, ends: Sequence[int]) -> None:
    """Write `ends` into the file of a generation config.

    transformers refuses to save a changed config with inconsistent settings, which published ones have.
    """
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("eos_token_id", None)
    if ends:
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def too_large(name: str, kind: str) -> OnebaseError:
    """The error for a weight with values too large for a dtype."""
    return OnebaseError(
        say(
            f"The weight {name} has values too large for {kind}.",
            f"权重 {name} 含有 {kind} 无法表示的数值。",
        ),
        say("Use another --dtype.", "请使用其他 --dtype。"),
    )
