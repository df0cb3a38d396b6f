"""The changes that the adapters of a pack make to linear layers, applied together.

For each linear layer, the low-rank matrices of all adapters that change it are concatenated. Two
matrix products serve any number of adapters: each token's inner activations are masked to the
columns of its own adapter. An additional adapter in a batch costs only its columns. Vectors (IA3,
and DoRA's factors) are gathered token by token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution, LowRank
from onebase.engine.linear import Linear, Part, products


class Deltas:
    """Applies the changes in `stacks` to the base's `linears`. `owners`, [tokens], is the index of
    each token's adapter in the stacks (-1: no adapter). `decoding`: one token per sequence of a
    batch, without gradient.
    """

    def __init__(
        self,
        stacks: "Stacks",
        owners: Tensor,
        linears: Mapping[str, Linear],
        *,
        decoding: bool = False,
    ) -> None:
        self._stacks = stacks
        self._decoding = decoding
        self._owners = owners
        self._linears = linears
        self._family_inputs: Tensor | None = None
        self._family_outputs: dict[str, Tensor] = {}
        self._column_scales: dict[tuple[tuple[int, int, float], ...], Tensor] = {}
        self._table_rows: dict[tuple[int, ...], Tensor] = {}

    def output(self, linear: Linear, inputs: Tensor) -> Tensor:
        """The output of a linear layer for `inputs`, [1, tokens, inputs], with the adapters' changes.

        The first layer of a family, whose layers share one input, computes the outputs of all.
        """
        if inputs is self._family_inputs and linear.name in self._family_outputs:
            output = self._family_outputs.pop(linear.name)
            self._family_inputs = inputs if self._family_outputs else None
            return output
        stack = self._stacks.get(linear.name)
        if stack is None:
            return linear.base_output(inputs, decoding=self._decoding)
        if not (stack.is_plain and linear.is_plain(inputs)):
            return self._general_output(stack, linear, inputs)
        family = {
            name: layer_stack
            for name in linear.family
            if (layer_stack := self._stacks.get(name)) is not None
            and layer_stack.is_plain
            and self._linears[name].is_plain(inputs)
        }
        x = inputs.flatten(0, -2)
        parts = [
            Part(
                (layer := self._linears[name].layer).weight,
                layer.bias,
                layer_stack.a.to(x.dtype),
                layer_stack.b.to(x.dtype),
                self._scales(layer_stack.signature, x),
            )
            for name, layer_stack in family.items()
        ]
        outputs = [output[None] for output in products(x, parts, decoding=self._decoding)]
        self._family_inputs = inputs
        self._family_outputs = dict(zip(family, outputs, strict=True))
        return self.output(linear, inputs)

    def _general_output(self, stack: "Stack", linear: Linear, inputs: Tensor) -> Tensor:
        """As `output`, for any kind of change to any kind of layer."""
        if stack.on_inputs:
            inputs = inputs * self._gathered(stack.on_inputs, inputs.dtype)
        output = linear.base_output(inputs, decoding=self._decoding)
        flat = output.flatten(0, -2)
        bias = linear.layer.bias if stack.factors or stack.on_outputs else None
        if bias is not None:
            flat = flat - bias
        if stack.on_outputs:
            flat = flat * self._gathered(stack.on_outputs, flat.dtype)
        if stack.low_rank:
            x = inputs.flatten(0, -2)
            if stack.dropouts:
                x = self._drop(x, stack.dropouts)
            scales = self._scales(stack.signature, x)
            flat = _AddLowRank.apply(  # type: ignore[no-untyped-call]
                flat, x, stack.a.to(x.dtype), stack.b.to(x.dtype), scales
            )
        if stack.factors:
            flat = flat * self._gathered(stack.factors, flat.dtype)
        if bias is not None:
            flat = flat + bias
        return flat.view_as(output)

    def _gathered(self, vectors: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
        """The vector of each token's adapter, ones for an adapter without, [tokens, size]."""
        adapters = tuple(vectors)
        if adapters not in self._table_rows:
            rows = torch.zeros_like(self._owners)
            for row, adapter in enumerate(adapters, 1):
                rows[self._owners == adapter] = row
            self._table_rows[adapters] = rows
        entries = list(vectors.values())
        table = torch.stack([torch.ones_like(entries[0]), *entries]).to(dtype)
        return table.index_select(0, self._table_rows[adapters])

    def _scales(self, signature: tuple[tuple[int, int, float], ...], x: Tensor) -> Tensor:
        """Each token's factor per column, [tokens, ranks]: the scale in its own adapter's columns,
        zero in the others.
        """
        if signature not in self._column_scales:
            pieces = [
                (self._owners == index).to(x.dtype)[:, None].expand(-1, rank) * scale
                for index, rank, scale in signature
            ]
            self._column_scales[signature] = torch.cat(pieces, dim=1)
        return self._column_scales[signature]

    def _drop(self, x: Tensor, dropouts: Mapping[int, tuple[float, int]]) -> Tensor:
        """Inverted dropout on the tokens of the adapters that have dropout."""
        factor = torch.ones_like(x)
        for index, (probability, seed) in dropouts.items():
            adapter_rows = (self._owners == index).nonzero().flatten()
            generator = torch.Generator(x.device).manual_seed(seed)
            random = torch.rand(len(adapter_rows), x.shape[1], device=x.device, generator=generator)
            kept = random >= probability
            factor[adapter_rows] = kept.to(x.dtype) / (1 - probability)
        return x * factor


class _AddLowRank(torch.autograd.Function):
    """`flat` + ((`x` @ `a`^T) * `scales`) @ `b`^T as one autograd step: a pass has hundreds of thin
    products, and a third of its time was overhead between them.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, x: Tensor, a: Tensor, b: Tensor, scales: Tensor) -> Tensor:
        inner = torch.mm(x, a.t()).mul_(scales)
        ctx.save_for_backward(x, a, b, scales, inner)
        return torch.addmm(flat, inner, b.t())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, scales, inner = ctx.saved_tensors
        needed = ctx.needs_input_grad
        gradient = upstream[0]
        # Thin products: with the wide matrix as the right-hand side they take half the time (LOG.md).
        inner_gradient = torch.mm(b.t(), gradient.t()).t().mul_(scales)
        return (
            gradient if needed[0] else None,
            torch.mm(inner_gradient, a) if needed[1] else None,
            torch.mm(inner_gradient.t(), x) if needed[2] else None,
            torch.mm(inner.t(), gradient).t() if needed[3] else None,
            None,
        )


@dataclass(frozen=True)
class Stack:
    """The changes to one linear layer. `a` is [ranks, inputs] and `b` [outputs, ranks], the
    concatenated matrices; `signature` has (adapter, rank, scale) for each block. The other fields
    are by adapter index.
    """

    a: Tensor
    b: Tensor
    signature: tuple[tuple[int, int, float], ...] = ()
    dropouts: Mapping[int, tuple[float, int]] = field(default_factory=dict)
    factors: Mapping[int, Tensor] = field(default_factory=dict)
    on_inputs: Mapping[int, Tensor] = field(default_factory=dict)
    on_outputs: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def low_rank(self) -> bool:
        """Whether there are low-rank deltas."""
        return bool(self.signature)

    @property
    def is_plain(self) -> bool:
        """Whether there are only low-rank deltas, without dropout."""
        others = (self.dropouts, self.factors, self.on_inputs, self.on_outputs)
        return self.low_rank and not any(others)


class Stacks:
    """The stacked changes of `adapters` by linear layer; each stack is built by the first `get`."""

    def __init__(self, contributions: Mapping[str, Contribution], adapters: Sequence[str]) -> None:
        self._contributions = [contributions[adapter] for adapter in adapters]
        self._layers = {
            name for item in self._contributions for name in (*item.deltas, *item.scalings)
        }
        self._stacks: dict[str, Stack] = {}

    def __bool__(self) -> bool:
        return bool(self._layers)

    def get(self, name: str) -> Stack | None:
        """The stack of the layer `name`, None if no adapter changes it."""
        if name not in self._layers:
            return None
        if name not in self._stacks:
            self._stacks[name] = self._stack(name)
        return self._stacks[name]

    def _stack(self, name: str) -> Stack:
        deltas: list[tuple[int, LowRank]] = [
            (index, item.deltas[name])
            for index, item in enumerate(self._contributions)
            if name in item.deltas
        ]
        vectors = {
            index: item.scalings[name]
            for index, item in enumerate(self._contributions)
            if name in item.scalings
        }
        return Stack(
            a=_concatenated([delta.a for _, delta in deltas], 0),
            b=_concatenated([delta.b for _, delta in deltas], 1),
            signature=tuple((index, delta.a.shape[0], delta.scale) for index, delta in deltas),
            dropouts={
                index: (delta.dropout, delta.draw) for index, delta in deltas if delta.dropout
            },
            factors={index: delta.factor for index, delta in deltas if delta.factor is not None},
            on_inputs={index: item.vector for index, item in vectors.items() if item.on_inputs},
            on_outputs={
                index: item.vector for index, item in vectors.items() if not item.on_inputs
            },
        )


def _concatenated(matrices: Sequence[Tensor], dimension: int) -> Tensor:
    if not matrices:
        return torch.empty(0)
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices), dimension)
