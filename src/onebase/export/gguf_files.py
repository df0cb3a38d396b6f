"""Writing the two files for llama.cpp: `model.gguf`, a whole model, and `adapter.gguf`, a LoRA."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    quantize,
)
from torch import Tensor

from onebase.adapters.contribution import LowRank
from onebase.export.eos import AnswerEnds
from onebase.export.gguf_family import ROPE_FACTORS, Names, family_of, rope_factors, write_settings
from onebase.export.gguf_tokenizer import write_tokenizer
from onebase.export.merged import too_large
from onebase.model.base import Base

_F32, _F16, _Q8_0 = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.Q8_0,
)
_FILE_TYPES = {
    "f32": (_F32, LlamaFileType.ALL_F32),
    "f16": (_F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (_Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_model(base: Base, file: Path, *, name: str, kind: str, ends: AnswerEnds) -> list[str]:
    """Write `base` with its matrices as `kind`: f32, f16 or q8_0; vectors stay float32.

    Answers end at `ends`. Returns notes on the tokenizer. Raises UsageError or OnebaseError for a base
    that llama.cpp would compute differently, and for values too large for f16.
    """
    family = family_of(base)
    names = Names(family, base)
    matrix_type, file_type = _FILE_TYPES[kind]
    # Tied weights have one name here and one tensor in GGUF.
    parameters = {names.name(key): (key, value) for key, value in base.model.named_parameters()}
    shapes = {name: tuple(value.shape) for name, (_, value) in parameters.items()}
    tensors: Iterable[Tensor] = (names.weight(key, value) for key, value in parameters.values())
    factors = rope_factors(base)
    if factors is not None:
        shapes = {ROPE_FACTORS: tuple(factors.shape), **shapes}
        tensors = chain([factors], tensors)
    with _writing(file, family.name) as writer:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(file_type)
        if matrix_type is _Q8_0:
            writer.add_quantization_version(GGML_QUANT_VERSION)
        write_settings(writer, family, base)
        notes = write_tokenizer(writer, base, ends)
        _write_tensors(writer, shapes, tensors, matrix_type)
    return notes


def write_adapter(deltas: Mapping[str, LowRank], base: Base, file: Path, *, name: str) -> None:
    """Write low-rank deltas, without factors, as a LoRA for the base's GGUF, in float32.

    llama.cpp scales every delta by alpha / rank with a single alpha; for a delta with another scale the
    ratio goes into its `b`.
    """
    family = family_of(base)
    names = Names(family, base)
    first = next(iter(deltas.values()))
    alpha = first.scale * len(first.a)
    tensors = {}
    for module, delta in deltas.items():
        target = names.name(f"{module}.weight")
        tensors[f"{target}.lora_a"] = delta.a.float()
        ratio = delta.scale * len(delta.a) / alpha
        tensors[f"{target}.lora_b"] = names.rows(module, delta.b.float()) * ratio
    with _writing(file, family.name) as writer:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_string("adapter.lora.task_name", name)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        _write_tensors(writer, shapes, tensors.values(), _F32)


@contextmanager
def _writing(file: Path, architecture: str) -> Iterator[GGUFWriter]:
    writer = GGUFWriter(file, architecture)
    try:
        yield writer
    finally:
        writer.close()


def _write_tensors(
    writer: GGUFWriter,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[Tensor],
    matrix_type: GGMLQuantizationType,
) -> None:
    """Write the header and then one tensor after another, so that only one is in memory twice."""
    kinds = {name: _kind(shape, matrix_type) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        block, size = GGML_QUANT_SIZES[kinds[name]]
        length = prod(shape) // block * size
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), length, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (name, kind), tensor in zip(kinds.items(), tensors, strict=True):
        writer.write_tensor_data(_encoded(name, tensor, kind))


def _kind(shape: tuple[int, ...], matrix_type: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of a tensor: vectors are float32; rows that do not fill q8_0's blocks are f16, as in
    llama.cpp's own files.
    """
    if len(shape) == 1:
        return _F32
    if shape[-1] % GGML_QUANT_SIZES[matrix_type][0]:
        return _F16
    return matrix_type


def _encoded(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> Any:
    if kind is _F16 and float(tensor.abs().max()) > float(numpy.finfo(numpy.float16).max):
        raise too_large(name, "f16")
    return quantize(tensor.detach().contiguous().numpy(), kind)
