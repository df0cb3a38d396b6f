"""Products of frozen layers with low-rank deltas as one step, against the same by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from onebase.engine.linear import Part, decode_linear, products

TOKENS, INPUTS = 5, 6


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def parts(sizes: list[tuple[int, int]], *, bias: bool) -> list[Part]:
    """Layers of (outputs, ranks); each token keeps some columns, at a scale of its own."""
    return [
        Part(
            drawn(outputs, INPUTS),
            drawn(outputs) if bias else None,
            drawn(ranks, INPUTS).requires_grad_(),
            drawn(outputs, ranks).requires_grad_(),
            drawn(TOKENS, ranks).relu(),
        )
        for outputs, ranks in sizes
    ]


@pytest.mark.parametrize("sizes", [[(4, 3)], [(4, 3), (2, 1), (7, 3)]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("decoding", [True, False])
def test_outputs(sizes: list[tuple[int, int]], bias: bool, decoding: bool) -> None:
    torch.manual_seed(0)
    x, layers = drawn(TOKENS, INPUTS), parts(sizes, bias=bias)
    outputs = products(x, layers, decoding=decoding)
    assert len(outputs) == len(sizes)
    for output, part in zip(outputs, layers, strict=True):
        delta = ((x @ part.a.t()) * part.scales) @ part.b.t()
        torch.testing.assert_close(output, linear(x, part.weight, part.bias) + delta)


@pytest.mark.parametrize("sizes", [[(4, 3)], [(4, 3), (2, 1)]])
@pytest.mark.parametrize("into", [True, False])
def test_gradients(sizes: list[tuple[int, int]], into: bool) -> None:
    torch.manual_seed(0)
    x, layers = drawn(TOKENS, INPUTS).requires_grad_(into), parts(sizes, bias=True)
    learned = [tensor for part in layers for tensor in (part.a, part.b)]

    def of(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        changed = [
            Part(part.weight, part.bias, a, b, part.scales)
            for part, a, b in zip(layers, tensors[::2], tensors[1::2], strict=True)
        ]
        return products(x, changed)

    assert torch.autograd.gradcheck(of, (x, *learned))


@pytest.mark.parametrize("rows", [1, 2, 5, 64, 65])
@pytest.mark.parametrize("bias", [True, False])
def test_decoded_rows(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = drawn(rows, INPUTS), drawn(4, INPUTS)
    bias_vector = drawn(4) if bias else None
    product = decode_linear(x, weight, bias_vector)
    torch.testing.assert_close(product, linear(x, weight, bias_vector))
    assert product.is_contiguous()
