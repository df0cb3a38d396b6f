"""Experts of a mixture-of-experts model, which LoRA does not change: they are not linear layers."""

from collections.abc import Iterable

from torch.nn.modules.conv import _ConvNd

from onebase.adapters.methods import parts_of
from onebase.language import say
from onebase.model.base import Base


def unchanged_experts(base: Base, methods: Iterable[str]) -> list[str]:
    """A note that no expert gets a delta, if one of `methods` is LoRA and `base` has experts."""
    parts = {part for method in methods for part in parts_of(method)}
    experts = _experts(base) if parts & {"lora", "qlora"} else {}
    if not experts:
        return []
    share = sum(experts.values()) / sum(weight.numel() for weight in base.layers.parameters())
    kinds = ", ".join(dict.fromkeys(name.partition(".")[2] for name in experts))
    return [
        say(
            f"lora only changes linear layers: the experts of this mixture ({kinds}; {share:.0%} of the "
            "weights in its layers) stay unchanged.",
            f"lora 只改变线性层：该混合专家模型的专家（{kinds}，占各层权重的 {share:.0%}）保持不变。",
        )
    ]


def _experts(base: Base) -> dict[str, int]:
    """The number of weights of each expert tensor, by name (`0.mlp.experts.down_proj`).

    One tensor holds all experts of a layer.
    """
    return {
        f"{name}.{weight}": tensor.numel()
        for name, module in base.layers.named_modules()
        if not isinstance(module, _ConvNd)
        for weight, tensor in module.named_parameters(recurse=False)
        if tensor.dim() >= 3
    }
