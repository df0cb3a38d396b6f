"""The configuration of a GGUF file, with the fields that transformers ignores.

transformers maps some fields of a family and ignores others, such as the scaling of the rotary
embedding and the layers with a sliding window. Here they are added to its configuration; a file with a
field that nothing reads is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from onebase.model.gguf_rope import FIELDS, TENSORS, UnreadField, rope_scaling

_FULL, _SLIDING = "full_attention", "sliding_attention"
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_KEY, _VALUE, _ROTATED = "attention.key_length", "attention.value_length", "rope.dimension_count"
_BASE, _LOCAL_BASE = "rope.freq_base", "rope.freq_base_swa"
_SCALE = "attention.scale"
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# Fields without effect, and the values of other fields that have no effect.
_WITHOUT_EFFECT = {
    "vocab_size",
    "context_length",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "pooling_type",
}
_NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
}
# Families with a sliding window on some layers, and the default period of the pattern in layers.
_SLIDING_PERIODS = {"gemma2": 2, "gemma3": 6}
# Without a field llama.cpp scales queries by the head size, but in these models (family, layers: the
# 27B) by the hidden size.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}
# Families for which transformers knows the names of all tensors.
PLAIN_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "stablelm"}


@dataclass(frozen=True)
class Header:
    """The `fields` of a file's `family` without its prefix, the names of all `tensors`, and the
    `divisors` of its rotary frequencies.
    """

    family: str
    fields: Mapping[str, Any]
    tensors: frozenset[str]
    divisors: Mapping[str, NDArray[numpy.float32]]


def read_header(reader: GGUFReader) -> Header:
    """The parts of a file's header that its configuration needs. Raises ValueError without a family."""
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise ValueError("general.architecture is missing")
    family = str(architecture.contents())
    prefix = f"{family}."
    return Header(
        family,
        {
            name.removeprefix(prefix): shortest(field.contents())
            for name, field in reader.fields.items()
            if name.startswith(prefix)
        },
        frozenset(tensor.name for tensor in reader.tensors),
        {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32).ravel()
            for tensor in reader.tensors
            if tensor.name in TENSORS
        },
    )


def complete(config: Any, header: Header) -> None:
    """Add to `config`, as read by transformers, the fields that it ignores.

    Raises UnreadField for a field that is read neither there nor here.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    fields = header.fields
    if header.family in GGUF_CONFIG_ARCHS:  # transformers reads these families completely
        return
    mapped = _mapped(header.family)
    _heads(config, header, mapped)
    _biases(config, header)
    _rotary(config, header)
    _windows(config, header, mapped)
    for name in _SOFTCAPS:
        if name in fields and (hasattr(config, name) or fields[name]):
            _set(config, name, fields[name], name)
    _attention_scale(config, header)
    read = {_WINDOW, _PATTERN, _KEY, _VALUE, _ROTATED, _BASE, _LOCAL_BASE, _SCALE, *_SOFTCAPS}
    for name, value in fields.items():
        known = {*read, *FIELDS, *_WITHOUT_EFFECT, *(at for at, to in mapped.items() if to)}
        if name not in known and not (name in _NEUTRAL and value == _NEUTRAL[name]):
            raise UnreadField(f"{header.family}.{name}", value)


def _mapped(family: str) -> dict[str, str | None]:
    """The fields of a family that transformers reads, with its names for them."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    plain = family.replace("-", "").replace("_", "")
    for name, fields in GGUF_CONFIG_MAPPING.items():
        if name.replace("_", "") == plain:
            return dict(fields)
    return {}


def _set(config: Any, name: str, value: Any, field: str) -> None:
    if not hasattr(config, name):
        raise UnreadField(field, value)
    setattr(config, name, value)


def _heads(config: Any, header: Header, mapped: Mapping[str, str | None]) -> None:
    """Set the head size of keys and values; without a field, hidden size / heads."""
    fields = header.fields
    if "attention.head_count" not in fields or mapped.get(_KEY, "head_dim") != "head_dim":
        return
    heads = fields["attention.head_count"]
    if not isinstance(heads, int) or not heads:
        raise UnreadField(f"{header.family}.attention.head_count", heads)
    size = fields.get(_KEY, config.hidden_size // heads)
    if fields.get(_VALUE, size) != size:
        raise UnreadField(f"{header.family}.{_VALUE}", fields[_VALUE])
    if getattr(config, "head_dim", None) or size != config.hidden_size // heads:
        config.head_dim = size
    if _ROTATED not in fields:
        return
    rope = getattr(config, "rope_parameters", None) or {}
    fraction = rope.get("partial_rotary_factor")
    if int(size * (1.0 if fraction is None else fraction)) == fields[_ROTATED]:
        return
    if fraction is None:
        raise UnreadField(f"{header.family}.{_ROTATED}", fields[_ROTATED])
    rope["partial_rotary_factor"] = fields[_ROTATED] / size


def _biases(config: Any, header: Header) -> None:
    """Set the biases, for which there are no fields."""
    for name, tensors in (
        ("attention_bias", ("attn_q.bias", "attn_qkv.bias")),
        ("mlp_bias", ("ffn_gate.bias", "ffn_up.bias")),
    ):
        if hasattr(config, name) and any(tensor.endswith(tensors) for tensor in header.tensors):
            setattr(config, name, True)


def _rotary(config: Any, header: Header) -> None:
    rope: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    fields = header.fields
    if not rope:
        unread = [name for name in fields if name in FIELDS or name in (_BASE, _LOCAL_BASE)]
        if unread:
            raise UnreadField(f"{header.family}.{unread[0]}", fields[unread[0]])
        return
    everywhere = rope.get(_FULL, rope)  # Gemma 3 scales only its layers with full attention
    if _BASE in fields:
        everywhere["rope_theta"] = fields[_BASE]
    if _LOCAL_BASE in fields:
        if _SLIDING not in rope:
            raise UnreadField(f"{header.family}.{_LOCAL_BASE}", fields[_LOCAL_BASE])
        rope[_SLIDING]["rope_theta"] = fields[_LOCAL_BASE]
    context = config.max_position_embeddings
    theta = everywhere["rope_theta"]
    scaling = rope_scaling(fields, header.divisors, theta=theta, context=context)
    everywhere.update(scaling)
    if scaling.get("rope_type") == "longrope":
        original = "original_max_position_embeddings"
        if hasattr(config, original):  # where Phi-3 reads it
            setattr(config, original, scaling[original])


def _windows(config: Any, header: Header, mapped: Mapping[str, str | None]) -> None:
    """Set the sliding window, and which layers have it."""
    fields, family = header.fields, header.family
    window = fields.get(_WINDOW)
    if window is not None and _WINDOW not in mapped:
        if family == "phi3":
            config.sliding_window = window or None
        elif 0 < window < config.max_position_embeddings:
            raise UnreadField(f"{family}.{_WINDOW}", window)
    if family not in _SLIDING_PERIODS:
        if fields.get(_PATTERN):
            raise UnreadField(f"{family}.{_PATTERN}", fields[_PATTERN])
        return
    pattern = fields.get(_PATTERN, _SLIDING_PERIODS[family])
    layers = range(config.num_hidden_layers)
    if isinstance(pattern, list):
        if len(pattern) != len(layers):
            raise UnreadField(f"{family}.{_PATTERN}", pattern)
        sliding = [bool(item) for item in pattern]
    else:
        sliding = [bool(pattern) and (layer + 1) % pattern != 0 for layer in layers]
    config.layer_types = [_SLIDING if item else _FULL for item in sliding]


def _attention_scale(config: Any, header: Header) -> None:
    """Set the scale of queries, from its field or llama.cpp's default."""
    scale, name = header.fields.get(_SCALE), "query_pre_attn_scalar"
    average = config.hidden_size // config.num_attention_heads
    size = getattr(config, "head_dim", None) or average
    if hasattr(config, name):
        by_hidden = (header.family, config.num_hidden_layers) in _SCALED_BY_HIDDEN
        default = average if by_hidden else size
        setattr(config, name, round(scale**-2) if scale else default)
    elif scale and abs(scale * size**0.5 - 1) > 1e-4:
        raise UnreadField(f"{header.family}.{_SCALE}", scale)


def unread_tensors(model: Any, header: Header) -> list[str]:
    """The tensors of a file that `model` does not have; only for families whose names are all known."""
    if header.family not in PLAIN_FAMILIES:
        return []
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    names = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
    return sorted(header.tensors - set(names) - set(TENSORS))


def shortest(value: Any) -> Any:
    """`value` with each float32 that was read as a double (9.99999974e-06) as written (1e-05)."""
    if isinstance(value, dict):
        return {key: shortest(item) for key, item in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value
