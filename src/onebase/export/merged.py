"""An adapter merged into its base: a plain model that knows nothing of adapters."""

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
    """Raise UsageError where the adapter `name` has a part that is no weight of the base."""
    if contribution.prefix is not None:
        what = say("a prefix of keys and values", "键值前缀")
    elif contribution.virtual is not None or contribution.placed is not None:
        what = say("virtual tokens", "虚拟词元")
    else:
        return
    parts = [contribution.virtual, contribution.placed, contribution.prefix]
    alone = sum(part is not None for part in parts) == 1 and contribution.placed is None
    alone &= not contribution.masked_prefix
    if alone and not contribution.deltas and not contribution.scalings:
        remedy = say(
            "Use --to peft: the PEFT library loads them beside the base.",
            "请使用 --to peft：PEFT 库可将其与基座一起加载。",
        )
    else:
        remedy = say(
            "Train the task with lora, ia3 or full, which can be merged.",
            "请用可以合并的方法（lora、ia3 或 full）训练该任务。",
        )
    raise UsageError(
        say(
            f"{name} can't be merged into the base: it has {what}, which are no weights of it.",
            f"{name} 无法合并到基座：它含有{what}，而基座的权重中没有对应的位置。",
        ),
        remedy,
    )


def merge(base: Base, contribution: Contribution) -> None:
    """Change the weights of `base`, held in fp32, to what they are with an adapter's contribution.

    The contribution is one that check_mergeable let pass. Only weights change, never biases.
    """
    for name in contribution.deltas.keys() | contribution.scalings.keys():
        linear = base.model.get_submodule(name)
        linear.weight.data = merged(
            linear.weight.data, contribution.deltas.get(name), contribution.scalings.get(name)
        )


def merged(weight: Tensor, delta: LowRank | None, scaling: Scaling | None) -> Tensor:
    """A linear layer's weight, [outputs, inputs], with the changes that the engine makes on the
    fly: `factor * (out * W + scale * b @ a) * in`, each only where there is one.
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
    """Write `base` as a Hugging Face folder with weights of type `kind`, which its own become too.

    Its generation_config.json names `ends`, the token ids that end an answer.
    Raises OnebaseError where a weight is too large for `kind`, UsageError for a base whose
    tokenizer transformers has no class for.
    """
    if isinstance(base.tokenizer, ChatGLMTokenizer):
        raise UsageError(
            say(
                f"{base.name} has ChatGLM's own tokenizer, which a plain folder has no place for.",
                f"{base.name} 使用 ChatGLM 自带的分词器，普通目录无法保存它。",
            ),
            say("Use --to peft.", "请使用 --to peft。"),
        )
    model: Any = base.model.to(kind)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise too_large(name, str(kind).removeprefix("torch."))
    model.save_pretrained(folder)
    _name_ends(folder / "generation_config.json", ends)
    base.tokenizer.save_pretrained(folder)


def _name_ends(file: Path, ends: Sequence[int]) -> None:
    """Write `ends` into a generation config, in the file itself: transformers refuses to save one that
    was changed and has settings which contradict each other, as published ones have.
    """
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("eos_token_id", None)
    if ends:
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def too_large(name: str, kind: str) -> OnebaseError:
    """The error for a weight that a type of number can't hold."""
    return OnebaseError(
        say(
            f"The weight {name} has values that {kind} can't hold.",
            f"权重 {name} 含有 {kind} 无法表示的数值。",
        ),
        say("Choose another --dtype.", "请选择其他 --dtype。"),
    )
