"""IA3 (Liu et al. 2022): learned vectors that rescale keys, values and feed-forward activations."""

import torch
from torch import nn

from onebase.adapters.contribution import Scaling
from onebase.adapters.lora import chosen_layers, layer_of
from onebase.adapters.option import StrictOptions, option
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import ModelShape

# Last parts of layer names: IA3 rescales the outputs of the first group and the inputs of the
# second (section 3.3: l_k, l_v and l_ff).
_OUTPUTS = ("k_proj", "v_proj")
_INPUTS = ("down_proj",)


class Ia3Options(StrictOptions):
    """The options of `ia3`."""

    layers: str = option(
        "all",
        "Decoder layers that get vectors: all, top:10, bottom:4, or numbers from 0 "
        "such as 0,2,5-9.",
        "带缩放向量的解码层：all、top:10、bottom:4，或从 0 开始的编号，如 0,2,5-9。",
    )


class Ia3(nn.Module):
    """One vector per site, initially ones; `sites` maps layer names to (size, on inputs)."""

    def __init__(self, sites: dict[str, tuple[int, bool]]) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.vectors = nn.ParameterList(
            nn.Parameter(torch.ones(size)) for size, _ in self.sites.values()
        )

    def scalings(self) -> dict[str, Scaling]:
        """The vectors by full name of their linear layer."""
        return {
            name: Scaling(vector, on_inputs)
            for vector, (name, (_, on_inputs)) in zip(self.vectors, self.sites.items(), strict=True)
        }


def ia3_sites(shape: ModelShape, layers: str) -> dict[str, tuple[int, bool]]:
    """The layers that get a vector, with its size and whether it scales the inputs.

    Raises UsageError for a base without separate layers for keys, values or feed-forward.
    """
    chosen = set(chosen_layers(layers, shape.layers))
    sites: dict[str, tuple[int, bool]] = {}
    for name, (inputs, outputs) in shape.linears.items():
        last = name.rsplit(".", 1)[-1]
        if layer_of(name) in chosen and last in _OUTPUTS + _INPUTS:
            sites[name] = (inputs, True) if last in _INPUTS else (outputs, False)
    covered = {name.rsplit(".", 1)[-1] for name in sites}
    if missing := set(_OUTPUTS + _INPUTS) - covered:
        raise UsageError(
            say(
                f"IA3 rescales k_proj, v_proj and down_proj; this base has no {min(missing)}.",
                f"IA3 缩放 k_proj、v_proj 和 down_proj，而该基座没有 {min(missing)}。",
            ),
            say("Use lora with this base.", "请在该基座上使用 lora。"),
        )
    return sites
