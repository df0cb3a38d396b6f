"""Fixing rotary embeddings whose frequencies depend on the longest text of a pass.

transformers chooses these frequencies by the largest position in a pass: `longrope` (Phi-3) has a
second set beyond `original_max_position_embeddings`; `dynamic` NTK changes with every token beyond
`max_position_embeddings`, and its module keeps the change. A long text in a pack would thus change the
results of its neighbours. Up to that limit the frequencies are constant, so longer texts are refused.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class RotaryLimit:
    """The rope type of a model in transformers, and the number of tokens up to which its frequencies are
    constant.
    """

    kind: str
    tokens: int


def fix_rotary(model: nn.Module) -> RotaryLimit | None:
    """Fix the frequencies at those of short texts. Returns the limit up to which they are valid, if
    there is one.
    """
    limits = []
    module: Any
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _depends_on_length(kinds):
            limits.append(_limit(module, kinds, module.config.rope_parameters))
            _reset(module, "")
            module.rope_type = "default"
        elif isinstance(kinds, dict):
            for layers, kind in kinds.items():
                if _depends_on_length(kind):
                    limits.append(_limit(module, kind, module.config.rope_parameters[layers]))
                    _reset(module, f"{layers}_")
                    kinds[layers] = "default"
    return min(limits, key=lambda limit: limit.tokens, default=None)


def _depends_on_length(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind  # the same condition as in transformers


def _limit(module: Any, kind: str, parameters: dict[str, Any]) -> RotaryLimit:
    if kind == "longrope":
        return RotaryLimit(kind, parameters["original_max_position_embeddings"])
    return RotaryLimit(kind, module.config.max_position_embeddings)


def _reset(module: Any, prefix: str) -> None:
    """Restore the initial frequencies."""
    getattr(module, f"{prefix}inv_freq").copy_(getattr(module, f"{prefix}original_inv_freq"))
