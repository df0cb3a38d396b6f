"""Rotary embeddings whose frequencies depend on the longest text of a pass, held at one value.

transformers chooses these frequencies by the largest position at hand: `longrope` (Phi-3) has a second
set beyond `original_max_position_embeddings`, `dynamic` NTK grows with every token beyond
`max_position_embeddings`, and a module keeps what it has grown to. A long text in a pack would change
its neighbours. Up to that border the frequencies are constant, so texts are held within it.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class RotaryLimit:
    """The rope type of a model, as transformers calls it, and the longest text in tokens for which its
    frequencies are constant.
    """

    kind: str
    tokens: int


def hold_rotary(model: nn.Module) -> RotaryLimit | None:
    """Keep the frequencies of short texts, whatever the model is asked or has been asked; how long a
    text they are right for, where there is a limit.
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
    return kind == "longrope" or "dynamic" in kind  # transformers asks the same


def _limit(module: Any, kind: str, parameters: dict[str, Any]) -> RotaryLimit:
    if kind == "longrope":
        return RotaryLimit(kind, parameters["original_max_position_embeddings"])
    return RotaryLimit(kind, module.config.max_position_embeddings)


def _reset(module: Any, prefix: str) -> None:
    """The frequencies as they were before any text."""
    getattr(module, f"{prefix}inv_freq").copy_(getattr(module, f"{prefix}original_inv_freq"))
