"""The scaling of a GGUF file's rotary embedding as transformers' `rope_parameters`.

llama.cpp stores the scaling in fields (`rope.scaling.*`: linear and YaRN) or as a divisor for each
frequency in a tensor (`rope_freqs.weight` of Llama 3.1, `rope_factors_*.weight` of Phi-3).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

FREQUENCIES, LONG, SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
TENSORS = (FREQUENCIES, LONG, SHORT)
_TYPE, _FACTOR, _OLD_FACTOR = "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"
_ATTENTION = ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor")
_ORIGINAL = "rope.scaling.original_context_length"
_YARN = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
_EXTRAPOLATED = "rope.scaling.yarn_ext_factor"
FIELDS = {_TYPE, _FACTOR, _OLD_FACTOR, *_ATTENTION, _ORIGINAL, *_YARN, _EXTRAPOLATED}
_CLOSE = 1e-3  # relative tolerance of a divisor stored in 16 bits

Divisors = Mapping[str, NDArray[numpy.float32]]


class UnreadField(ValueError):
    """A field or tensor `name` of the file that would be ignored."""

    def __init__(self, name: str, value: object = None) -> None:
        super().__init__(name)
        self.name = name if value is None else f"{name} ({value})"


def rope_scaling(
    fields: Mapping[str, Any], divisors: Divisors, *, theta: float, context: int
) -> dict[str, Any]:
    """The `rope_parameters` for a file's `fields` and `divisors`; empty without scaling.

    `fields` are without the family's prefix; `theta` is the base of the frequencies, `context` the
    context length in tokens. Raises UnreadField for a scaling that transformers does not support.
    """
    factor = float(fields.get(_FACTOR, 0.0) or fields.get(_OLD_FACTOR, 0.0))
    kind = str(fields.get(_TYPE, "linear"))  # llama.cpp's default
    attention = math.prod(float(fields.get(name, 1.0)) for name in _ATTENTION)
    scales = kind not in ("none", "longrope") and factor not in (0.0, 1.0)
    if LONG in divisors or SHORT in divisors:
        return _longrope(fields, divisors, attention, context)
    if kind == "longrope":
        raise UnreadField(_TYPE, kind)
    if FREQUENCIES in divisors:
        if scales:
            raise UnreadField(_TYPE, kind)
        _require_unscaled_attention(fields, attention)
        return _llama3(divisors[FREQUENCIES], theta)
    if not scales:
        _require_unscaled_attention(fields, attention)
        return {}
    if kind == "yarn":
        return _yarn(fields, factor, attention, context)
    if kind != "linear":
        raise UnreadField(_TYPE, kind)
    _require_unscaled_attention(fields, attention)
    return {"rope_type": "linear", "factor": factor}


def _require_unscaled_attention(fields: Mapping[str, Any], attention: float) -> None:
    """Raise UnreadField for scaled attention, which only YaRN and longrope have."""
    if attention != 1.0:
        name = next(name for name in _ATTENTION if name in fields)
        raise UnreadField(name, fields[name])


def _yarn(
    fields: Mapping[str, Any], factor: float, attention: float, context: int
) -> dict[str, Any]:
    """YaRN (arXiv:2309.00071); llama.cpp also scales its logits by `0.1 ln(factor) + 1`."""
    extrapolated = float(fields.get(_EXTRAPOLATED, 1.0))
    if extrapolated >= 0 and extrapolated != 1.0:
        raise UnreadField(_EXTRAPOLATED, extrapolated)
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(fields.get(_ORIGINAL, context)),
    }
    parameters |= {name: float(fields[field]) for field, name in _YARN.items() if field in fields}
    if attention != 1.0:
        parameters["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return parameters


def _longrope(
    fields: Mapping[str, Any], divisors: Divisors, attention: float, context: int
) -> dict[str, Any]:
    if LONG not in divisors or SHORT not in divisors or _ORIGINAL not in fields:
        raise UnreadField(LONG if LONG in divisors else SHORT)
    original = int(fields[_ORIGINAL])
    parameters: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": [float(value) for value in divisors[LONG]],
        "short_factor": [float(value) for value in divisors[SHORT]],
        "original_max_position_embeddings": original,
        "factor": context / original,
    }
    if any(name in fields for name in _ATTENTION):
        parameters["attention_factor"] = attention
    return parameters


def _llama3(divisors: NDArray[numpy.float32], theta: float) -> dict[str, Any]:
    """Llama 3.1's four parameters, computed from the divisors of the frequencies.

    The frequency of a wavelength up to `original / high` is unchanged, that of one from `original / low`
    on is divided by `factor`; between them the inverse of the divisor is linear in
    `original / wavelength`. Only `original / high` and `original / low` can be determined, so `low` is
    set to 1.
    """
    factor = float(divisors.max())
    if abs(factor - 1) < _CLOSE and abs(float(divisors.min()) - 1) < _CLOSE:
        return {}
    size = len(divisors)
    wavelengths = 2 * math.pi * theta ** (numpy.arange(size, dtype=numpy.float64) / size)
    unchanged = divisors < 1 + _CLOSE
    divided = divisors > factor * (1 - _CLOSE)
    between = numpy.flatnonzero(~unchanged & ~divided)
    # The interpolation weight of each: 0 at `original / low`, 1 at `original / high`.
    weights = (1 / divisors.astype(numpy.float64) - 1 / factor) / (1 - 1 / factor)
    high = 4.0
    if len(between) > 1:
        first, last = between[0], between[-1]
        slope = (weights[first] - weights[last]) / (1 / wavelengths[first] - 1 / wavelengths[last])
        offset = weights[first] - slope / wavelengths[first]
        high = 1 - 1 / offset
        original = slope * (high - 1)
    elif len(between) == 1:
        original = wavelengths[between[0]] * (1 + 3 * weights[between[0]])
    else:
        original = wavelengths[divided].min()
        high = original / wavelengths[unchanged].max() if unchanged.any() else high
    original = round(original) if abs(original - round(original)) < _CLOSE * original else original
    if abs(high - round(high)) < 10 * _CLOSE:
        high = float(round(high))
    expected = numpy.clip((original / wavelengths - 1) / (high - 1), 0, 1)
    expected = 1 / ((1 - expected) / factor + expected)
    if not numpy.allclose(expected, divisors, rtol=5 * _CLOSE):
        raise UnreadField(FREQUENCIES)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(original),
    }
