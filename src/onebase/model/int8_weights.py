"""8-bit weights: a linear layer and an embedding that hold int8 with a scale for each row."""

import ctypes
import mmap
import sys
from typing import Any, Self

import torch
from torch import Tensor, nn

_LINUX = sys.platform.startswith("linux")


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix rounded to int8, and the scale of each row, [rows, 1]."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is int8, [outputs, inputs], with a scale for each row.

    The weight is dequantized to the dtype `compute` for each product, also in the backward pass, and
    then dropped. Scales are always fp32: 16 bits can't represent 127 steps precisely enough.
    """

    scale: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None, compute: torch.dtype
    ) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self._compute = compute
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, linear: nn.Linear, weight: Tensor, compute: torch.dtype) -> Self:
        """`linear` with `weight`, its own weight on any device, rounded to int8."""
        return cls(*rounded(weight), linear.bias, compute)

    def restored(self) -> Tensor:
        """The dequantized weight."""
        return (self.weight.data * self.scale).to(self._compute)

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear, differentiable in `input`."""
        output: Tensor = _Int8Product.apply(input, self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias


class Int8Embedding(nn.Embedding):
    """A frozen embedding of int8 rows with a scale each; the output is multiplied by `factor`."""

    scale: Tensor

    def __init__(self, weight: nn.Parameter, scale: Tensor, factor: float) -> None:
        rows, width = weight.shape
        # Without a given weight torch would draw one, for which it imports its compiler.
        super().__init__(rows, width, _weight=weight.data, _freeze=True)
        self.weight = weight
        self.factor = factor
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        """The embeddings of ids, in float32."""
        rows: Tensor = self.weight.data[input] * self.scale[input]
        return rows if self.factor == 1 else rows * self.factor


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(inputs, layer.restored().to(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.restored().to(gradients[0].dtype), None


def discard(weight: Tensor) -> None:
    """Tell the system that a weight's memory will not be read again.

    Checkpoints are mapped into memory, and a mapping lives as long as one of its tensors. Without
    this, every page read once would count as this process's memory.
    """
    if not _LINUX or weight.device.type != "cpu":
        return
    page = mmap.PAGESIZE
    start = -(-weight.data_ptr() // page) * page
    end = (weight.data_ptr() + weight.numel() * weight.element_size()) // page * page
    if end > start:
        advice = ctypes.CDLL(None).madvise
        advice(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(4))
