"""Frozen linear layers, and the products of those that read one input, deltas included, as one step.

Query, key and value, or gate and up, read the same tensor. Taken together, their thin low-rank products
become one less thin product, and what they send back is added up in place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Up to so many rows a CPU multiplies the quicker with the wide matrix on the left (LOG.md).
_FEW = 64
_FAMILIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Linear:
    """A linear layer of the base: its name, and `forward` without deltas. `family` names the layers
    that read the same tensor, in the order in which they do, itself among them.
    """

    name: str
    layer: nn.Linear
    forward: Callable[[Tensor], Tensor]
    family: tuple[str, ...]

    def is_plain(self, inputs: Tensor) -> bool:
        """Whether it is the product of `inputs` with a frozen matrix of their type, nothing more."""
        return (
            type(self.layer) is nn.Linear
            and self.layer.weight.dtype == inputs.dtype
            and not self.layer.weight.requires_grad
            and not torch.is_autocast_enabled(inputs.device.type)
        )

    def plainly(self, inputs: Tensor, *, decoding: bool) -> Tensor:
        """Its output without deltas, [..., outputs], of `inputs` [..., inputs]."""
        if not decoding or not self.is_plain(inputs):
            return self.forward(inputs)
        flat = decoded(inputs.flatten(0, -2), self.layer.weight, self.layer.bias)
        return flat.view(*inputs.shape[:-1], len(self.layer.weight))


def decoded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias, [rows, outputs], of a token for each sequence of a batch, `x` [rows, inputs];
    without gradient.
    """
    if x.device.type != "cpu" or not 1 < len(x) <= _FEW:
        return nn.functional.linear(x, weight, bias)
    product = torch.mm(weight, x.t()).t().contiguous()
    return product if bias is None else product.add_(bias)


def linears_of(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Linear]:
    """The layers `names` of a model, by name."""
    found = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        family = next((group for group in _FAMILIES if last in group), (last,))
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        members = [f"{parent}.{member}" for member in family]
        own = tuple(member for member in members if member in names)
        found[name] = Linear(name, layer, layer.forward, own)
    return found


@dataclass(frozen=True)
class Part:
    """One layer of a product: its matrix [outputs, inputs], its bias, its low-rank delta `a` [ranks,
    inputs] and `b` [outputs, ranks], and for every token what its own columns count, [tokens, ranks].
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    kept: Tensor


def products(x: Tensor, parts: Sequence[Part], *, decoding: bool = False) -> tuple[Tensor, ...]:
    """x W^T + bias + ((x a^T) * kept) b^T for every part; `x` is [tokens, inputs], differentiable in
    it and in every `a` and `b`, but not while `decoding`.
    """
    tensors = [tensor for part in parts for tensor in (part.weight, part.bias, part.a, part.b)]
    kept = parts[0].kept if len(parts) == 1 else torch.cat([part.kept for part in parts], 1)
    outputs: tuple[Tensor, ...] = _Products.apply(x, kept, decoding, *tensors)  # type: ignore[no-untyped-call]
    return outputs


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept: Tensor, decoding: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        product = decoded if decoding else nn.functional.linear
        weights, biases, many, bs = (tensors[at::4] for at in range(4))
        a = many[0] if len(many) == 1 else torch.cat(many)
        ctx.ranks = [len(one) for one in many]
        inner = torch.mm(x, a.t()).mul_(kept)
        outputs = []
        for weight, bias, b, own in zip(
            weights, biases, bs, torch.split(inner, ctx.ranks, 1), strict=True
        ):
            output = product(x, weight, bias)
            outputs.append(output.addmm_(own, b.t()))
        ctx.save_for_backward(x, kept, inner, a, *weights, *bs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, inner, a, *rest = ctx.saved_tensors
        weights, bs = rest[: len(upstream)], rest[len(upstream) :]
        # Thin products: a wide matrix as the right-hand side takes half the time (LOG.md).
        own = torch.empty_like(inner.t(), memory_format=torch.contiguous_format)
        for b, gradient, rows in zip(bs, upstream, torch.split(own, ctx.ranks), strict=True):
            torch.mm(b.t(), gradient.t(), out=rows)
        own.mul_(kept.t())
        into = None
        if ctx.needs_input_grad[0]:
            into = torch.mm(own.t(), a)
            for weight, gradient in zip(weights, upstream, strict=True):
                into.addmm_(gradient, weight)
        to_a = torch.split(torch.mm(own, x), ctx.ranks)
        to_b = [
            torch.mm(part.t(), gradient).t()
            for part, gradient in zip(torch.split(inner, ctx.ranks, 1), upstream, strict=True)
        ]
        each = [
            gradient for pair in zip(to_a, to_b, strict=True) for gradient in (None, None, *pair)
        ]
        return (into, None, None, *each)
