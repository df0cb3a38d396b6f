"""The low-rank deltas of all adapters in a pass, applied together.

For a linear layer the matrices of every adapter that has a delta on it are put side by side:
two products serve all of them, whatever their number, and each token keeps only the columns of
its own adapter. So adding an adapter to a batch, or switching between adapters, costs nothing
but a few columns.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution, LowRank


class Deltas:
    """The deltas in `stacks`; `owners`, [tokens], says by its index in the stacks' adapters whose
    each token is (-1: nobody's).
    """

    def __init__(self, stacks: "Stacks", owners: Tensor) -> None:
        self._stacks = stacks
        self._owners = owners
        self._columns: dict[tuple[tuple[int, int, float], ...], Tensor] = {}

    def apply(self, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """`output` of the linear layer `name`, [1, tokens, outputs], with the deltas added."""
        stack = self._stacks.get(name)
        if stack is None:
            return output
        a, b, signature, dropouts = stack
        x = inputs.flatten(0, -2)
        if dropouts:
            x = self._drop(x, dropouts)
        inner = torch.mm(x, a.t().to(x.dtype)) * self._kept(signature, x)
        flat = output.flatten(0, -2)
        return torch.addmm(flat, inner, b.t().to(x.dtype)).view_as(output)

    def _kept(self, signature: tuple[tuple[int, int, float], ...], x: Tensor) -> Tensor:
        """For every token the scale of its own adapter's columns and zero elsewhere."""
        if signature not in self._columns:
            pieces = [
                (self._owners == index).to(x.dtype)[:, None].expand(-1, rank) * scale
                for index, rank, scale in signature
            ]
            self._columns[signature] = torch.cat(pieces, dim=1)
        return self._columns[signature]

    def _drop(self, x: Tensor, dropouts: dict[int, float]) -> Tensor:
        """Inverted dropout on the tokens of the adapters that ask for it."""
        factor = torch.ones_like(x)
        for index, probability in dropouts.items():
            own = (self._owners == index).nonzero().flatten()
            kept = torch.rand(len(own), x.shape[1], device=x.device) >= probability
            factor[own] = kept.to(x.dtype) / (1 - probability)
        return x * factor


_Stack = tuple[Tensor, Tensor, tuple[tuple[int, int, float], ...], dict[int, float]]


class Stacks:
    """For every linear layer the matrices of some adapters side by side, made when first asked
    for. `a` is [ranks, inputs], `b` [outputs, ranks].
    """

    def __init__(self, contributions: Mapping[str, Contribution], adapters: Sequence[str]) -> None:
        self._by_layer: dict[str, list[tuple[int, LowRank]]] = {}
        for index, adapter in enumerate(adapters):
            for name, delta in contributions[adapter].deltas.items():
                self._by_layer.setdefault(name, []).append((index, delta))
        self._made: dict[str, _Stack] = {}

    def __bool__(self) -> bool:
        return bool(self._by_layer)

    def get(self, name: str) -> _Stack | None:
        """The stack of the layer `name`, None when no adapter has a delta there."""
        if name not in self._by_layer:
            return None
        if name not in self._made:
            parts = self._by_layer[name]
            self._made[name] = (
                torch.cat([delta.a for _, delta in parts]) if len(parts) > 1 else parts[0][1].a,
                torch.cat([delta.b for _, delta in parts], 1) if len(parts) > 1 else parts[0][1].b,
                tuple((index, delta.a.shape[0], delta.scale) for index, delta in parts),
                {index: delta.dropout for index, delta in parts if delta.dropout},
            )
        return self._made[name]
