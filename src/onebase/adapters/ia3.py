"""IA3 (Liu et al. 2022): trained vectors that rescale keys, values and the feed-forward's inside."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from onebase.adapters.contribution import Scaling
from onebase.adapters.lora import chosen_layers, layer_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import ModelShape

# The layers by the last part of their names: outputs of the first are rescaled, inputs of the
# second (section 3.3: l_k, l_v and l_ff).
_OUTPUTS = ("k_proj", "v_proj")
_INPUTS = ("down_proj",)


class Ia3Options(BaseModel):
    """The options of `ia3`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layers: str = Field(
        "all",
        description="Decoder layers that get vectors: all, top:10, bottom:4, or numbers from 0 "
        "such as 0,2,5-9.",
        json_schema_extra={
            "zh": "带缩放向量的解码层：all、top:10、bottom:4，或从 0 开始的编号，如 0,2,5-9。"
        },
    )


class Ia3(nn.Module):
    """A vector for each site, all ones at first; `sites` maps names to (size, on inputs?)."""

    def __init__(self, sites: dict[str, tuple[int, bool]]) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.vectors = nn.ParameterList(
            nn.Parameter(torch.ones(size)) for size, _ in self.sites.values()
        )

    def scalings(self) -> dict[str, Scaling]:
        """The vectors by the full name of their linear layer."""
        return {
            name: Scaling(vector, on_inputs)
            for vector, (name, (_, on_inputs)) in zip(self.vectors, self.sites.items(), strict=True)
        }


def ia3_sites(shape: ModelShape, layers: str) -> dict[str, tuple[int, bool]]:
    """The layers that get a vector: its size, and whether it is for their inputs.

    Raises UsageError where the base has no keys, values or feed-forward of their own.
    """
    chosen = set(chosen_layers(layers, shape.layers))
    sites: dict[str, tuple[int, bool]] = {}
    for name, (inputs, outputs) in shape.linears.items():
        last = name.rsplit(".", 1)[-1]
        if layer_of(name) in chosen and last in _OUTPUTS + _INPUTS:
            sites[name] = (inputs, True) if last in _INPUTS else (outputs, False)
    there = {name.rsplit(".", 1)[-1] for name in sites}
    if missing := set(_OUTPUTS + _INPUTS) - there:
        raise UsageError(
            say(
                f"IA3 rescales k_proj, v_proj and down_proj; this base has no {min(missing)}.",
                f"IA3 缩放 k_proj、v_proj 和 down_proj，而该基座没有 {min(missing)}。",
            ),
            say("Use lora on this base.", "请在该基座上使用 lora。"),
        )
    return sites
