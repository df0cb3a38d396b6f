"""Names of layers where the base is the text part of a model that also reads images.

From the base's folder transformers loads the whole model, so PEFT calls `model.layers.0` there
`model.language_model.layers.0`, and passes over tensors under the other name.
"""

from typing import Any

from torch import Tensor

from onebase.adapters.lora import matches
from onebase.adapters.peft_config import named, targeted
from onebase.model.base import Base

_INNER, _OUTER = "model.", "model.language_model."
_PREFIX = "base_model.model."  # of PEFT's names


def name_for_peft(base: Base, name: str) -> str:
    """What PEFT calls a linear layer of the base."""
    return _OUTER + name.removeprefix(_INNER) if base.is_text_part else name


def has_outer_names(base: Base, tensors: dict[str, Tensor]) -> bool:
    """Whether an adapter's tensors are named as in the whole model, and the base has the text part by
    itself, from whatever files. Those of an adapter that was trained on that are not.
    """
    return not any(name.startswith(_OUTER) for name in base.shape.linears) and any(
        f"{_PREFIX}{_OUTER}" in key for key in tensors
    )


def inner_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that they have in the text part."""
    outer, inner = f"{_PREFIX}{_OUTER}", f"{_PREFIX}{_INNER}"
    return {key.replace(outer, inner, 1): value for key, value in tensors.items()}


def inner_config(base: Base, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of PEFT's whose fields name the text part's layers, each in full."""
    if config.get("peft_type") not in ("LORA", "IA3"):
        return config
    names = {name: _OUTER + name.removeprefix(_INNER) for name in base.shape.linears}
    found = {
        **config,
        "target_modules": [name for name, outer in names.items() if targeted(config, outer)],
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    }
    if (inputs := config.get("feedforward_modules")) is not None:
        found["feedforward_modules"] = [n for n, outer in names.items() if named(inputs, outer)]
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        found[field] = {
            name: next(value for pattern, value in patterns.items() if matches(pattern, outer))
            for name, outer in names.items()
            if any(matches(pattern, outer) for pattern in patterns)
        }
    return found
