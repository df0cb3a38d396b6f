"""LoRA (Hu et al. 2021): trainable low-rank deltas on frozen linear layers."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from onebase.adapters.contribution import LowRank
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import ModelShape


class LoraOptions(BaseModel):
    """`rank` of the deltas; `alpha`, whose ratio to the rank scales them; `target`, the linear
    layers that get one: `attention`, `all-linear`, or names separated by commas; `dropout` on
    the deltas' inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(8, ge=1, le=512)
    alpha: float = Field(16.0, gt=0)
    target: Literal["attention", "all-linear"] | str = "all-linear"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)


class Lora(nn.Module):
    """One pair of matrices for each target: `a` starts uniform as in the paper's code, `b` zero."""

    def __init__(
        self, names: dict[str, tuple[int, int]], *, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.scale = scale
        self.dropout = dropout
        self.a = nn.ParameterList()
        self.b = nn.ParameterList()
        for inputs, outputs in names.values():
            matrix = torch.empty(rank, inputs)
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            self.a.append(nn.Parameter(matrix))
            self.b.append(nn.Parameter(torch.zeros(outputs, rank)))

    def deltas(self) -> dict[str, LowRank]:
        """The deltas by the full name of their linear layer."""
        return {
            name: LowRank(a, b, self.scale, self.dropout if self.training else 0.0)
            for name, a, b in zip(self.names, self.a, self.b, strict=True)
        }


def targets(shape: ModelShape, target: str) -> dict[str, tuple[int, int]]:
    """The linear layers that `target` names, with (inputs, outputs).

    Raises UsageError when it names none.
    """
    if target == "all-linear":
        found = shape.linears
    elif target == "attention":
        found = {
            name: size
            for name, size in shape.linears.items()
            if "attn" in name or "attention" in name
        }
    else:
        wanted = {part.strip() for part in target.split(",")}
        known = {name.rsplit(".", 1)[-1] for name in shape.linears}
        if missing := wanted - known:
            raise UsageError(
                say(
                    f"No linear layer is called {', '.join(sorted(missing))!r}.",
                    f"没有名为 {', '.join(sorted(missing))!r} 的线性层。",
                ),
                say(
                    f"Valid targets: attention, all-linear, {', '.join(sorted(known))}.",
                    f"可用：attention、all-linear、{'、'.join(sorted(known))}。",
                ),
            )
        found = {n: s for n, s in shape.linears.items() if n.rsplit(".", 1)[-1] in wanted}
    if not found:
        raise UsageError(
            say(
                f"target={target} names no linear layer of this base.",
                f"target={target} 在该基座中不对应任何线性层。",
            ),
            say("Choose another target, or another method.", "请选择其他 target 或其他方法。"),
        )
    return found
