"""RMSNorm in few operations: the architectures' own values, and gradients by finite differences."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from onebase.engine.forward import prepare
from onebase.engine.norm import _RMSNorm, quick_norm
from onebase.model.base import Base


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if type(m).__name__.endswith("RMSNorm")}


def test_every_norm_of_every_architecture(
    architecture: str, make_base: Callable[..., Base], plain_model: Callable[..., nn.Module]
) -> None:
    base, plain = make_base(architecture), plain_model(architecture)
    torch.manual_seed(0)
    for module in (*norms(base.model).values(), *norms(plain).values()):
        module.weight.data.copy_(torch.linspace(-0.5, 1.5, len(module.weight)))  # type: ignore[operator,arg-type]
    prepare(base)
    quick_norms = norms(base.model)
    assert quick_norms.keys() == norms(plain).keys()
    # Two a layer and the last; Gemma and GLM-4 have four, Gemma and Qwen 3 normalise queries and keys.
    assert len(quick_norms) == 1 + 3 * {"gemma3": 6, "glm4": 4, "qwen3": 4}.get(architecture, 2)
    for name, theirs in norms(plain).items():
        assert "forward" in vars(quick_norms[name]), f"{name} keeps its own"
        width = len(theirs.weight)  # type: ignore[arg-type]
        x = (torch.randn(2, 5, width) * 3).requires_grad_()
        again = x.detach().clone().requires_grad_()
        expected, ours = theirs(x), quick_norms[name](again)
        torch.testing.assert_close(ours, expected, atol=5e-6, rtol=0)
        upstream = torch.randn_like(expected)
        expected.backward(upstream)
        ours.backward(upstream)
        assert x.grad is not None
        assert again.grad is not None
        torch.testing.assert_close(again.grad, x.grad, atol=5e-6, rtol=0)


def test_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _RMSNorm.apply(x, scale, 1e-5), x)


def test_what_it_is_not_for() -> None:
    frozen = nn.RMSNorm(4, eps=1e-6).requires_grad_(False)
    assert quick_norm(frozen) is not None
    assert quick_norm(nn.RMSNorm(4, eps=1e-6)) is None  # its weight learns
    assert quick_norm(nn.RMSNorm(4, eps=1e-6).requires_grad_(False).bfloat16()) is None
    assert quick_norm(nn.LayerNorm(4).requires_grad_(False)) is None

    class OddRMSNorm(nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2 + 1

    assert quick_norm(OddRMSNorm(4, eps=1e-6).requires_grad_(False)) is None
    llama = LlamaRMSNorm(4).requires_grad_(False)
    quick = quick_norm(llama)
    assert quick is not None
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    assert torch.equal(quick(half), llama(half))  # other types take the module's own way
