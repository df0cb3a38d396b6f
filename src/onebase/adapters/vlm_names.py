"""Layer names where the base is the text part of a vision-language model.

From the base's folder transformers loads the whole model. PEFT then calls `model.layers.0`
`model.language_model.layers.0`, and ignores tensors under the other name.
"""

from typing import Any

from torch import Tensor

from onebase.adapters.lora import matches
from onebase.adapters.peft_config import named, targeted
from onebase.model.base import Base

_INNER, _OUTER = "model.", "model.language_model."
_PREFIX = "base_model.model."  # of PEFT's names


def name_for_peft(base: Base, name: str) -> str:
    """PEFT's name for a linear layer of the base."""
    return _OUTER + name.removeprefix(_INNER) if base.is_text_part else name


def has_outer_names(base: Base, tensors: dict[str, Tensor]) -> bool:
    """Whether tensors are named as in the whole model while the base is its text part alone.

    Adapters trained on the text part alone do not have such names.
    """
    return not any(name.startswith(_OUTER) for name in base.shape.linears) and any(
        f"{_PREFIX}{_OUTER}" in key for key in tensors
    )


def inner_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names in the text part."""
    outer, inner = f"{_PREFIX}{_OUTER}", f"{_PREFIX}{_INNER}"
    return {key.replace(outer, inner, 1): value for key, value in tensors.items()}


def inner_config(base: Base, config: dict[str, Any]) -> dict[str, Any]:
    """A PEFT configuration whose fields name the text part's layers by their full names."""
    if config.get("peft_type") not in ("LORA", "IA3"):
        return config
    names = {name: _OUTER + name.removeprefix(_INNER) for name in base.shape.linears}
    renamed = {
        **config,
        "target_modules": [name for name, outer in names.items() if targeted(config, outer)],
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    }
    if (inputs := config.get("feedforward_modules")) is not None:
        renamed["feedforward_modules"] = [n for n, outer in names.items() if named(inputs, outer)]
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        renamed[field] = {
            name: next(value for pattern, value in patterns.items() if matches(pattern, outer))
            for name, outer in names.items()
            if any(matches(pattern, outer) for pattern in patterns)
        }
    return renamed
