"""The experts of a mixture, which are no linear layers: lora leaves them as they are."""

from collections.abc import Iterable

from torch.nn.modules.conv import _ConvNd

from onebase.adapters.methods import parts_of
from onebase.language import say
from onebase.model.base import Base


def unchanged_experts(base: Base, methods: Iterable[str]) -> list[str]:
    """A note, before one of these methods learns on a mixture of experts, that no expert gets a delta."""
    parts = {part for method in methods for part in parts_of(method)}
    experts = _experts(base) if parts & {"lora", "qlora"} else {}
    if not experts:
        return []
    share = sum(experts.values()) / sum(weight.numel() for weight in base.layers.parameters())
    kinds = ", ".join(dict.fromkeys(name.partition(".")[2] for name in experts))
    return [
        say(
            f"lora changes linear layers alone: the experts of this mixture ({kinds}; {share:.0%} of the "
            "weights in its layers) stay as they are.",
            f"lora 只改变线性层：该混合专家模型的专家（{kinds}，占各层权重的 {share:.0%}）保持不变。",
        )
    ]


def _experts(base: Base) -> dict[str, int]:
    """The weights of experts, all of a layer's in one tensor, by name (`0.mlp.experts.down_proj`), and
    how many numbers each has.
    """
    return {
        f"{name}.{weight}": tensor.numel()
        for name, module in base.layers.named_modules()
        if not isinstance(module, _ConvNd)
        for weight, tensor in module.named_parameters(recurse=False)
        if tensor.dim() >= 3
    }
