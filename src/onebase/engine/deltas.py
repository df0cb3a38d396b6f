"""What the adapters in a pack change in linear layers, applied together.

For a linear layer the low-rank matrices of every adapter that has a delta on it are put side by
side: two products serve all of them, whatever their number, and each token keeps only the columns
of its own adapter. So adding an adapter to a batch, or switching between adapters, costs nothing
but a few columns. Vectors (IA3, and DoRA's factors) are gathered token by token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution, LowRank
from onebase.engine.linear import Linear, Part, products


class Deltas:
    """The changes in `stacks` to the base's `linears`; `owners`, [tokens], says by its index in the
    stacks' adapters whose each token is (-1: nobody's). `decoding`: a token for each sequence of a
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
        self._read: Tensor | None = None
        self._waiting: dict[str, Tensor] = {}
        self._columns: dict[tuple[tuple[int, int, float], ...], Tensor] = {}
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def output(self, linear: Linear, inputs: Tensor) -> Tensor:
        """The output of a linear layer for its `inputs`, [1, tokens, inputs], with the changes made.

        The first of a family of layers that read one tensor computes the others' outputs too.
        """
        if inputs is self._read and linear.name in self._waiting:
            output = self._waiting.pop(linear.name)
            self._read = inputs if self._waiting else None
            return output
        stack = self._stacks.get(linear.name)
        if stack is None:
            return linear.plainly(inputs, decoding=self._decoding)
        if not (stack.is_plain and linear.is_plain(inputs)):
            return self._changed(stack, linear, inputs)
        family = {
            name: own
            for name in linear.family
            if (own := self._stacks.get(name)) is not None
            and own.is_plain
            and self._linears[name].is_plain(inputs)
        }
        x = inputs.flatten(0, -2)
        parts = [
            Part(
                (layer := self._linears[name].layer).weight,
                layer.bias,
                own.a.to(x.dtype),
                own.b.to(x.dtype),
                self._kept(own.signature, x),
            )
            for name, own in family.items()
        ]
        outputs = [output[None] for output in products(x, parts, decoding=self._decoding)]
        self._read, self._waiting = inputs, dict(zip(family, outputs, strict=True))
        return self.output(linear, inputs)

    def _changed(self, stack: "Stack", linear: Linear, inputs: Tensor) -> Tensor:
        """As `output`, for changes of any kind to a layer of any kind."""
        if stack.on_inputs:
            inputs = inputs * self._gathered(stack.on_inputs, inputs.dtype)
        output = linear.plainly(inputs, decoding=self._decoding)
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
            kept = self._kept(stack.signature, x)
            flat = _Added.apply(  # type: ignore[no-untyped-call]
                flat, x, stack.a.to(x.dtype), stack.b.to(x.dtype), kept
            )
        if stack.factors:
            flat = flat * self._gathered(stack.factors, flat.dtype)
        if bias is not None:
            flat = flat + bias
        return flat.view_as(output)

    def _gathered(self, vectors: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
        """For every token the vector of its own adapter, or ones, [tokens, size]."""
        adapters = tuple(vectors)
        if adapters not in self._rows:
            rows = torch.zeros_like(self._owners)
            for row, adapter in enumerate(adapters, 1):
                rows[self._owners == adapter] = row
            self._rows[adapters] = rows
        own = list(vectors.values())
        table = torch.stack([torch.ones_like(own[0]), *own]).to(dtype)
        return table.index_select(0, self._rows[adapters])

    def _kept(self, signature: tuple[tuple[int, int, float], ...], x: Tensor) -> Tensor:
        """For every token the scale of its own adapter's columns and zero elsewhere."""
        if signature not in self._columns:
            pieces = [
                (self._owners == index).to(x.dtype)[:, None].expand(-1, rank) * scale
                for index, rank, scale in signature
            ]
            self._columns[signature] = torch.cat(pieces, dim=1)
        return self._columns[signature]

    def _drop(self, x: Tensor, dropouts: Mapping[int, tuple[float, int]]) -> Tensor:
        """Inverted dropout on the tokens of the adapters that ask for it."""
        factor = torch.ones_like(x)
        for index, (probability, draw) in dropouts.items():
            own = (self._owners == index).nonzero().flatten()
            generator = torch.Generator(x.device).manual_seed(draw)
            drawn = torch.rand(len(own), x.shape[1], device=x.device, generator=generator)
            kept = drawn >= probability
            factor[own] = kept.to(x.dtype) / (1 - probability)
        return x * factor


class _Added(torch.autograd.Function):
    """`flat` + ((`x` @ `a`^T) * `kept`) @ `b`^T, as one step of autograd: with hundreds of thin
    products in a pass, a third of the time was between them.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, x: Tensor, a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
        inner = torch.mm(x, a.t()).mul_(kept)
        ctx.save_for_backward(x, a, b, kept, inner)
        return torch.addmm(flat, inner, b.t())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, kept, inner = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        gradient = upstream[0]
        # Thin products: a wide matrix as the right-hand side takes half the time (LOG.md).
        own = torch.mm(b.t(), gradient.t()).t().mul_(kept)
        return (
            gradient if wanted[0] else None,
            torch.mm(own, a) if wanted[1] else None,
            torch.mm(own.t(), x) if wanted[2] else None,
            torch.mm(inner.t(), gradient).t() if wanted[3] else None,
            None,
        )


@dataclass(frozen=True)
class Stack:
    """The changes of one linear layer. `a` is [ranks, inputs], `b` [outputs, ranks]; `signature`
    has (adapter, rank, scale) for each block of them; the rest are by adapter.
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
        """Whether there is a low-rank delta."""
        return bool(self.signature)

    @property
    def is_plain(self) -> bool:
        """Whether low-rank deltas of the inputs as they are are all that there is."""
        others = (self.dropouts, self.factors, self.on_inputs, self.on_outputs)
        return self.low_rank and not any(others)


class Stacks:
    """For every linear layer the changes of some adapters, put together when first asked for."""

    def __init__(self, contributions: Mapping[str, Contribution], adapters: Sequence[str]) -> None:
        self._contributions = [contributions[adapter] for adapter in adapters]
        self._layers = {
            name for item in self._contributions for name in (*item.deltas, *item.scalings)
        }
        self._made: dict[str, Stack] = {}

    def __bool__(self) -> bool:
        return bool(self._layers)

    def get(self, name: str) -> Stack | None:
        """The stack of the layer `name`, None when no adapter changes it."""
        if name not in self._layers:
            return None
        if name not in self._made:
            self._made[name] = self._stack(name)
        return self._made[name]

    def _stack(self, name: str) -> Stack:
        parts: list[tuple[int, LowRank]] = [
            (index, item.deltas[name])
            for index, item in enumerate(self._contributions)
            if name in item.deltas
        ]
        vectors = {
            index: item.scalings[name]
            for index, item in enumerate(self._contributions)
            if name in item.scalings
        }
        nothing = torch.empty(0)
        return Stack(
            a=_beside([delta.a for _, delta in parts], 0) if parts else nothing,
            b=_beside([delta.b for _, delta in parts], 1) if parts else nothing,
            signature=tuple((index, delta.a.shape[0], delta.scale) for index, delta in parts),
            dropouts={
                index: (delta.dropout, delta.draw) for index, delta in parts if delta.dropout
            },
            factors={index: delta.factor for index, delta in parts if delta.factor is not None},
            on_inputs={at: item.vector for at, item in vectors.items() if item.on_inputs},
            on_outputs={at: item.vector for at, item in vectors.items() if not item.on_inputs},
        )


def _beside(matrices: Sequence[Tensor], dimension: int) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices), dimension)
