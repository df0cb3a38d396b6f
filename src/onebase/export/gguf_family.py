"""llama.cpp's model families: their settings and the names of their tensors in GGUF.

Sources: the GGUF specification (ggml's docs/gguf.md) and llama.cpp's computation for each architecture.
A setting that llama.cpp would compute differently is refused, never dropped.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor

from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    `interleaved`: llama.cpp rotates adjacent pairs of a head and transformers its two halves, so the rows
    of queries and keys are reordered. `norms_from_zero`: transformers stores the norms' weights minus one.
    `activation` is the only supported activation, `rope` are the supported rope types.
    """

    architecture: MODEL_ARCH
    activation: str = "silu"
    interleaved: bool = False
    norms_from_zero: bool = False
    rope: tuple[str, ...] = ("default", "linear", "yarn")
    extra: Callable[[GGUFWriter, Any], None] | None = None

    @property
    def name(self) -> str:
        """The value of `general.architecture`."""
        return str(MODEL_ARCH_NAMES[self.architecture])


def family_of(base: Base) -> Family:
    """The family of `base`. Raises UsageError for another family or an unsupported setting."""
    config = base.model.config
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise UsageError(
            say(
                f"{base.name} is a {kind} model, which onebase can't write as GGUF.",
                f"{base.name} 是 {kind} 模型，onebase 无法将其写为 GGUF。",
            ),
            say(
                f"GGUF is supported for {', '.join(FAMILIES)}. Use --to merged or --to peft.",
                f"支持写为 GGUF 的有 {'、'.join(FAMILIES)}。请改用 --to merged 或 --to peft。",
            ),
        )
    family = FAMILIES[kind]
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    rope = _rope(config)
    settings: list[tuple[str, Any, bool]] = [
        ("hidden_act", activation, activation == family.activation),
        ("rope_type", rope["rope_type"], rope["rope_type"] in family.rope),
        *_family_settings(config),
        *(_yarn_settings(rope) if rope["rope_type"] == "yarn" else ()),
    ]
    for setting, value, supported in settings:
        if not supported:
            raise OnebaseError(
                say(
                    f"{base.name} has {setting}={value!r}, which llama.cpp's {family.name} does not "
                    "support.",
                    f"{base.name} 的 {setting}={value!r} 不受 llama.cpp 的 {family.name} 支持。",
                ),
                say("Use --to merged.", "请使用 --to merged。"),
            )
    return family


def _family_settings(config: Any) -> list[tuple[str, Any, bool]]:
    """Settings of single families, each with its value and whether llama.cpp supports it."""
    rotated = _rope(config).get("partial_rotary_factor", 1.0)
    settings: list[tuple[str, Any, bool]] = [("partial_rotary_factor", rotated, rotated == 1.0)]
    absent = ["attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"]
    if config.model_type != "llama":
        absent.append("attention_bias")
    for name in absent:
        value = getattr(config, name, None)
        settings.append((name, value, not value))
    layer_types: list[str] | None = getattr(config, "layer_types", None)
    if config.model_type == "gemma3_text":
        scale = config.query_pre_attn_scalar
        heads = config.hidden_size // config.num_attention_heads
        computed = heads if config.num_hidden_layers == 62 else config.head_dim  # 62 layers: 27B
        local = config.rope_parameters["sliding_attention"]["rope_type"]
        settings.append(("query_pre_attn_scalar", scale, scale == computed))
        settings.append(("layer_types", layer_types, bool(_period(layer_types or []))))
        settings.append(("rope_type", local, local == "default"))
    elif layer_types is not None:
        settings.append(("layer_types", layer_types, set(layer_types) == {"full_attention"}))
    return settings


def _yarn_settings(rope: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """YaRN's settings. llama.cpp supports the factor, the original context and a factor of the logits;
    older versions ignore the two betas.
    """
    settings: list[tuple[str, Any, bool]] = [
        (name, rope.get(name), rope.get(name) in (None, default))
        for name, default in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True))
    ]
    scales = bool(rope.get("mscale") and rope.get("mscale_all_dim"))
    settings.append(
        ("mscale", rope.get("mscale"), not scales or rope.get("attention_factor") is not None)
    )
    return settings


def _rope(config: Any) -> dict[str, Any]:
    """The rotary embedding's settings; of Gemma 3 those of its layers with full attention."""
    parameters: dict[str, Any] = config.rope_parameters
    rope: dict[str, Any] = parameters.get("full_attention", parameters)
    return rope


def _period(layer_types: list[str]) -> int | None:
    """The period of the pattern in which every last layer has full attention; None for other patterns."""
    full = "full_attention"
    period = layer_types.index(full) + 1 if full in layer_types else max(6, len(layer_types) + 1)
    pattern = [
        full if at % period == period - 1 else "sliding_attention" for at in range(len(layer_types))
    ]
    return period if pattern == layer_types and period > 1 else None


def write_settings(writer: GGUFWriter, family: Family, base: Base) -> None:
    """Write the model's sizes and settings into the header."""
    config, shape = base.model.config, base.shape
    writer.add_block_count(shape.layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocabulary)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        _write_yarn(writer, rope, config.max_position_embeddings)
    if family.extra is not None:
        family.extra(writer, config)


def _write_yarn(writer: GGUFWriter, rope: Mapping[str, Any], context: int) -> None:
    """Write YaRN's settings (arXiv:2309.00071). llama.cpp scales the logits by `0.1 ln(factor) + 1`
    (equation 22 of the paper) times the factor in the file.
    """
    original = rope["original_max_position_embeddings"]
    factor = rope["factor"] or context / original
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original)
    if (scale := rope.get("attention_factor")) is not None:
        default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        writer.add_rope_scaling_attn_factors(scale / default)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(_period(config.layer_types) or 6)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


class Names:
    """GGUF's names for the tensors of a base, and their layout in GGUF."""

    def __init__(self, family: Family, base: Base) -> None:
        self._family = family
        self._base = base
        self._map = get_tensor_name_map(family.architecture, base.shape.layers)

    def name(self, parameter: str) -> str:
        """`blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`.

        Raises OnebaseError for a parameter that llama.cpp's family does not have.
        """
        module, _, part = parameter.rpartition(".")
        name: str | None = self._map.get_name(module)
        if name is None:
            raise OnebaseError(
                say(
                    f"llama.cpp's {self._family.name} does not have the weight {parameter}.",
                    f"llama.cpp 的 {self._family.name} 没有权重 {parameter}。",
                ),
                say("Use --to merged.", "请使用 --to merged。"),
            )
        return f"{name}.{part}"

    def rows(self, module: str, matrix: Tensor) -> Tensor:
        """The rows of a weight, a bias or a delta's `b` of `module` in GGUF's order."""
        if not self._family.interleaved:
            return matrix
        shape = self._base.shape
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(module.rpartition(".")[2])
        if heads is None:
            return matrix
        # [heads, halves, pairs, ...] to [heads, pairs, halves, ...]
        split = matrix.reshape(heads, 2, shape.head_dim // 2, *matrix.shape[1:])
        return split.transpose(1, 2).reshape(matrix.shape)

    def weight(self, parameter: str, value: Tensor) -> Tensor:
        """The `value` of the base's `parameter` in GGUF's layout, in float32."""
        module = parameter.rpartition(".")[0]
        value = value.detach().float().cpu()
        if self._family.norms_from_zero and module.endswith("norm"):
            value = value + 1
        return self.rows(module, value).contiguous()


def rope_factors(base: Base) -> Tensor | None:
    """The divisors of the frequencies of Llama 3.1's rotary embedding, [head_dim / 2]; None for others."""
    rope = _rope(base.model.config)
    if rope["rope_type"] != "llama3":
        return None
    size = base.shape.head_dim
    plain: Tensor = rope["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    used: Tensor = base.model.model.rotary_emb.inv_freq
    return plain / used.float().cpu()


FAMILIES: dict[str, Family] = {
    "llama": Family(
        MODEL_ARCH.LLAMA, interleaved=True, rope=("default", "linear", "yarn", "llama3")
    ),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        activation="gelu_pytorch_tanh",
        norms_from_zero=True,
        rope=("default", "linear"),
        extra=_gemma3,
    ),
}
