"""Frozen linear layers. Layers that share one input are computed with their deltas in one autograd step.

Query, key and value, or gate and up, have the same input. Computed together, their thin low-rank
products become one wider product, and their input gradients are accumulated in place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Up to this many rows, a CPU is faster with the wide matrix on the left (LOG.md).
_FEW_ROWS = 64
_FAMILIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Linear:
    """A linear layer of the base: its name, and its `forward` without deltas. `family` names the
    layers with the same input, this one included, in the order in which the model calls them.
    """

    name: str
    layer: nn.Linear
    forward: Callable[[Tensor], Tensor]
    family: tuple[str, ...]

    def is_plain(self, inputs: Tensor) -> bool:
        """Whether it is only a product of `inputs` with a frozen matrix of the same dtype."""
        return (
            type(self.layer) is nn.Linear
            and self.layer.weight.dtype == inputs.dtype
            and not self.layer.weight.requires_grad
            and not torch.is_autocast_enabled(inputs.device.type)
        )

    def base_output(self, inputs: Tensor, *, decoding: bool) -> Tensor:
        """The output without deltas, [..., outputs], for `inputs` [..., inputs]."""
        if not decoding or not self.is_plain(inputs):
            return self.forward(inputs)
        flat = decode_linear(inputs.flatten(0, -2), self.layer.weight, self.layer.bias)
        return flat.view(*inputs.shape[:-1], len(self.layer.weight))


def decode_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias, [rows, outputs], for one token per sequence of a batch, `x` [rows, inputs];
    without gradient.
    """
    if x.device.type != "cpu" or not 1 < len(x) <= _FEW_ROWS:
        return nn.functional.linear(x, weight, bias)
    product = torch.mm(weight, x.t()).t().contiguous()
    return product if bias is None else product.add_(bias)


def linears_of(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Linear]:
    """The linear layers `names` of a model, by name."""
    linears = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        family = next((group for group in _FAMILIES if last in group), (last,))
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        full_names = [f"{parent}.{member}" for member in family]
        members = tuple(member for member in full_names if member in names)
        linears[name] = Linear(name, layer, layer.forward, members)
    return linears


@dataclass(frozen=True)
class Part:
    """One layer of a family: its matrix [outputs, inputs], its bias, its low-rank delta `a` [ranks,
    inputs] and `b` [outputs, ranks], and each token's factor per column, `scales` [tokens, ranks].
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scales: Tensor


def products(x: Tensor, parts: Sequence[Part], *, decoding: bool = False) -> tuple[Tensor, ...]:
    """x W^T + bias + ((x a^T) * scales) b^T for every part; `x` is [tokens, inputs]. Differentiable
    in `x` and in every `a` and `b`, except while `decoding`.
    """
    tensors = [tensor for part in parts for tensor in (part.weight, part.bias, part.a, part.b)]
    scales = parts[0].scales if len(parts) == 1 else torch.cat([part.scales for part in parts], 1)
    outputs: tuple[Tensor, ...] = _Products.apply(x, scales, decoding, *tensors)  # type: ignore[no-untyped-call]
    return outputs


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: Tensor, decoding: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        linear = decode_linear if decoding else nn.functional.linear
        weights, biases, as_, bs = (tensors[field::4] for field in range(4))
        a = as_[0] if len(as_) == 1 else torch.cat(as_)
        ctx.ranks = [len(matrix) for matrix in as_]
        inner = torch.mm(x, a.t()).mul_(scales)
        outputs = []
        for weight, bias, b, layer_inner in zip(
            weights, biases, bs, torch.split(inner, ctx.ranks, 1), strict=True
        ):
            output = linear(x, weight, bias)
            outputs.append(output.addmm_(layer_inner, b.t()))
        ctx.save_for_backward(x, scales, inner, a, *weights, *bs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scales, inner, a, *rest = ctx.saved_tensors
        weights, bs = rest[: len(upstream)], rest[len(upstream) :]
        # Thin products: with the wide matrix as the right-hand side they take half the time (LOG.md).
        inner_gradient = torch.empty_like(inner.t(), memory_format=torch.contiguous_format)
        rank_rows = torch.split(inner_gradient, ctx.ranks)
        for b, gradient, rows in zip(bs, upstream, rank_rows, strict=True):
            torch.mm(b.t(), gradient.t(), out=rows)
        inner_gradient.mul_(scales.t())
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.mm(inner_gradient.t(), a)
            for weight, gradient in zip(weights, upstream, strict=True):
                x_gradient.addmm_(gradient, weight)
        a_gradients = torch.split(torch.mm(inner_gradient, x), ctx.ranks)
        b_gradients = [
            torch.mm(layer_inner.t(), gradient).t()
            for layer_inner, gradient in zip(
                torch.split(inner, ctx.ranks, 1), upstream, strict=True
            )
        ]
        gradients = [
            gradient
            for pair in zip(a_gradients, b_gradients, strict=True)
            for gradient in (None, None, *pair)  # weight and bias are frozen
        ]
        return (x_gradient, None, None, *gradients)
