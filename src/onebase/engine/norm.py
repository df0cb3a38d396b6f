"""RMSNorm with frozen weights in few operations; it replaces the model's own modules.

A training step of a small base runs hundreds of norms, each of them a dozen small operations in the
forward pass and more in the backward pass. Zhang and Sennrich 2019, "Root Mean Square Layer
Normalization", equation 4.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_EPSILONS = ("variance_epsilon", "eps")


def quick_norm(norm: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A function that computes the module `norm` in fewer operations; None if `norm` is not an
    RMSNorm with frozen fp32 weights.

    The scale is the weight (Llama) or 1 + the weight (Gemma); a sample decides which.
    """
    parameters = scale_and_epsilon(norm)
    return None if parameters is None else _normalizer(norm.forward, *parameters)


def scale_and_epsilon(norm: nn.Module) -> tuple[Tensor, float] | None:
    """The scale of an RMSNorm and its epsilon; None if the module `norm` is not an RMSNorm with
    frozen fp32 weights.
    """
    weight = getattr(norm, "weight", None)
    epsilon = next((getattr(norm, key) for key in _EPSILONS if hasattr(norm, key)), None)
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if weight.dtype != torch.float32 or weight.requires_grad:
        return None
    sample = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1)
    with torch.no_grad():
        expected = norm(sample)
        for scale in (weight.detach(), weight.detach() + 1):
            normed = _RMSNorm.apply(sample, scale, epsilon)  # type: ignore[no-untyped-call]
            if torch.allclose(normed, expected, atol=1e-5, rtol=1e-5):
                return scale, epsilon
    return None


def _normalizer(
    module_forward: Callable[..., Any], scale: Tensor, epsilon: float
) -> Callable[[Tensor], Tensor]:
    def normalize(x: Tensor) -> Tensor:
        normed: Tensor
        if x.dtype != torch.float32:
            normed = module_forward(x)
        else:
            normed = _RMSNorm.apply(x, scale, epsilon)  # type: ignore[no-untyped-call]
        return normed

    return normalize


class _RMSNorm(torch.autograd.Function):
    """y = x r s with r = 1 / sqrt(mean(x^2) + epsilon), [..., hidden]. Differentiable in x only:
    dx = r (g s - x r^2 mean(g s x)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, scale)
        normed: Tensor = (x * inverse).mul_(scale)
        return normed

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, scale = ctx.saved_tensors
        scaled = upstream[0] * scale
        mean = (scaled * x).mean(-1, keepdim=True).mul_(inverse).mul_(inverse)
        return scaled.addcmul_(x, mean, value=-1).mul_(inverse), None, None
