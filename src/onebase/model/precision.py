"""The precision of a base: floating point, or quantized linear layers.

`nf4` is QLoRA's 4-bit NormalFloat (Dettmers et al. 2023, section 3), through bitsandbytes. `int8`
quantizes only the weights, with a scale for each row. (LLM.int8() of Dettmers et al. 2022 also
quantizes inputs, which ruins small bases; and its outlier columns depend on the whole batch, so a
request's answer would too.) Only the linear layers inside the decoder layers are quantized;
embeddings, norms and the head stay in floating point.

`w8a8` is for answering on a CPU (engine/lean): weights as in `int8`, also of the embedding and the
head, and integer products with activations that are rounded row by row.
"""

import ctypes
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from onebase.errors import OnebaseError, UsageError, unknown
from onebase.language import say
from onebase.model.int8_weights import Int8Embedding, Int8Linear, discard
from onebase.model.w8a8 import hold_w8a8

PrecisionName = Literal["fp32", "bf16", "fp16", "int8", "nf4", "w8a8"]
# It warns about optional kernels on a hub and, at every product, about intended casts.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LINUX = sys.platform.startswith("linux")
_QUANTIZED = ("int8", "nf4", "w8a8")
_NAMES = {kind: name for name, kind in _TYPES.items()}


@dataclass(frozen=True)
class Precision:
    """The `name` of a precision; `compute`, the dtype of its products and of everything that is not
    quantized; for nf4, whether the scales of the 4-bit blocks are quantized too
    (`double_quantization`, QLoRA section 3, which saves .37 bits per weight).
    """

    name: str
    compute: torch.dtype
    double_quantization: bool = True

    @property
    def quantized(self) -> bool:
        """Whether linear layers are quantized."""
        return self.name in _QUANTIZED

    @property
    def text(self) -> str:
        """The text that `choose` reads: `fp32`, `nf4:bf16`, `nf4:fp32:single`."""
        if not self.quantized or self.name == "w8a8":
            return self.name
        single = self.name == "nf4" and not self.double_quantization
        return f"{self.name}:{_NAMES[self.compute]}" + (":single" if single else "")

    def __str__(self) -> str:
        if not self.quantized or self.name == "w8a8":
            return self.name
        single = "" if self.name == "int8" or self.double_quantization else ", single quantization"
        return f"{self.name} (computes in {_NAMES[self.compute]}{single})"


def of_type(kind: torch.dtype) -> Precision:
    """The floating-point precision for weights of dtype `kind`."""
    return Precision(_NAMES.get(kind, str(kind).removeprefix("torch.")), kind)


def choose(text: str | None, *, device: str, stored: torch.dtype) -> Precision:
    """The precision named `text` on `device`, for weights stored with dtype `stored`.

    `text` is one of PRECISIONS; a quantized one may be followed by the dtype that it computes in, and
    nf4 by `single` (nf4:bf16, nf4:single, nf4:bf16:single). None means fp32 on a CPU, where 16-bit
    products are mostly emulated, and the stored dtype on a GPU. Quantized bases compute in fp32 on a
    CPU and in bf16 on a GPU by default. Raises UsageError for any other text.
    """
    on_cpu = device.startswith("cpu")
    if text is None:
        return Precision("fp32", torch.float32) if on_cpu else of_type(stored)
    name, *rest = text.split(":")
    if name not in PRECISIONS:
        raise unknown("precision", "精度", name, PRECISIONS)
    if name in _TYPES:
        if rest:
            raise _invalid_option(text, name, [])
        return Precision(name, _TYPES[name])
    if name == "w8a8":
        if rest:
            raise _invalid_option(text, name, [])
        if not on_cpu:
            raise UsageError(
                say("w8a8 runs on a CPU only.", "w8a8 只能在 CPU 上计算。"),
                say("Use bf16 or int8 on a GPU.", "在 GPU 上请使用 bf16 或 int8。"),
            )
    compute = _TYPES["fp32" if on_cpu else "bf16"]
    double = True
    for word in rest:
        if word in _TYPES:
            compute = _TYPES[word]
        elif word == "single" and name == "nf4":
            double = False
        else:
            raise _invalid_option(text, word, [*_TYPES, *(["single"] if name == "nf4" else [])])
    return Precision(name, compute, double)


def _invalid_option(text: str, word: str, valid: Sequence[str]) -> UsageError:
    if valid:
        return unknown("word in a precision", "精度中的词", word, valid)
    return UsageError(
        say(
            f"precision {text!r}: {word} takes no options.",
            f"精度 {text!r}：{word} 之后不能带其他选项。",
        ),
        say(f"Write just {word}, or nf4:bf16.", f"请只写 {word}，或写成 nf4:bf16。"),
    )


def hold(model: Any, linears: Sequence[str], precision: Precision, device: str) -> None:
    """Convert `model` in place to `precision` on `device`; `linears` names the layers that may be
    quantized.

    Raises OnebaseError if bitsandbytes is needed and missing.
    """
    if precision.name == "w8a8":
        hold_w8a8(model, linears)
    elif precision.quantized:
        for name in linears:
            linear = model.get_submodule(name)
            model.set_submodule(name, _quantized(linear, precision, device))
            discard(linear.weight)
    # One parameter at a time: `model.to` would convert the quantized ones too.
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dtype != torch.int8 and not (_is_quantized(module) and key == "weight"):
                before = parameter.data
                after = before.to(device, precision.compute)
                if after is not before:
                    parameter.data = after
                    discard(before)
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = buffer.to(device)
    _trim_memory()


def weight_of(linear: nn.Linear) -> Tensor:
    """A linear layer's weight in floating point, [outputs, inputs], dequantized if necessary."""
    if not _is_quantized(linear):
        return linear.weight.data
    if isinstance(linear, Int8Linear):
        return linear.restored()
    weight: Any = linear.weight
    restored: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
    return restored


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, Int8Linear | Int8Embedding) or type(module).__name__ == "Linear4bit"


def _quantized(linear: nn.Linear, precision: Precision, device: str) -> nn.Linear:
    if precision.name == "int8":
        return Int8Linear.of(linear, linear.weight.data.to(device), precision.compute)
    weight = linear.weight.data.to(device, precision.compute)
    bnb = _bitsandbytes()
    module: Any = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=precision.compute,
        device="meta",
    )
    module.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=precision.double_quantization,
        quant_type="nf4",
        module=module,
    ).to(device)
    module.bias = linear.bias
    # On a CPU with bfloat16 instructions the library would compute in bfloat16 outside training,
    # whatever the compute dtype.
    module.support_avx512bf16_for_cpu = False
    layer: nn.Linear = module.eval()
    return layer


def _bitsandbytes() -> Any:
    # Late: the import takes seconds, and only quantized bases need it.
    try:
        import bitsandbytes
    except (ImportError, OSError) as error:
        raise OnebaseError(
            say(f"bitsandbytes can't be loaded: {error}", f"无法加载 bitsandbytes：{error}"),
            say(
                "Run pip install bitsandbytes, or choose precision fp32, bf16 or fp16.",
                "请运行 pip install bitsandbytes，或选择 fp32、bf16、fp16 精度。",
            ),
        ) from error
    return bitsandbytes


def _trim_memory() -> None:
    """Make the C library return freed memory to the system; after a conversion that is hundreds of MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _LINUX else None
    if trim is not None:
        trim(0)
