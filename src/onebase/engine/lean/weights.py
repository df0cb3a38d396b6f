"""A base's weights where they are, as the tables of a step: nothing is copied but what needs padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onebase.engine.lean import plan
from onebase.engine.lean.matmul import largest_activation
from onebase.engine.lean.vector import PAD, padded
from onebase.engine.norm import scale_and_epsilon
from onebase.model.base import Base
from onebase.model.int8 import Int8Linear

_PANEL = 32768  # bytes of weights that are one piece of a product
_ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}
_INTERLEAVED = {"glm", "glm4"}
# What the norm after each branch is called, by family.
_POST = {
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
_NORM_2 = {"gemma3_text": "pre_feedforward_layernorm"}


@dataclass(frozen=True)
class Part:
    """Some rows of a linear layer's weight: [outputs, inputs] in float32, or in int8 with a scale for
    each output.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


class LeanWeights:
    """The tables of a base, and the tensors that they point to."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._kept: list[Any] = []
        config = base.model.config
        self._family = config.model_type
        shape = base.shape
        first: Any = base.layers[0]
        self.quantized = base.precision.name == "w8a8"
        heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        key_at, inner = padded(heads), _inner(first)
        value_at = key_at + padded(keys)
        layers = np.zeros((shape.layers, plan.LAYER_COLUMNS), np.int64)
        tables: list[list[list[tuple[int, int, int, int]]]] = []
        self._rotary = _module(base).rotary_emb
        self._rope_types = sorted({_rope_type(base, at) for at in range(shape.layers)})
        layer: Any
        for at, layer in enumerate(base.layers):
            layers[at, plan.ROPE] = self._rope_types.index(_rope_type(base, at))
            layers[at, plan.WINDOW] = _window(base, layer)
            self._norms(layers[at], layer)
            qkv = _qkv(layer, heads, keys)
            gate_up = _gate_up(layer, inner)
            layers[at, plan.BIAS_QKV] = self._bias(
                qkv, (0, key_at, value_at), value_at + padded(keys)
            )
            layers[at, plan.BIAS_GATE_UP] = self._bias(
                gate_up, (0, padded(inner)), 2 * padded(inner)
            )
            out, down = _part(layer.self_attn.o_proj), _part(layer.mlp.down_proj)
            layers[at, plan.BIAS_OUT] = self._bias([out], (0,), padded(shape.hidden))
            layers[at, plan.BIAS_DOWN] = self._bias([down], (0,), padded(shape.hidden))
            tables.append(
                [
                    self._panels(qkv, (0, key_at, value_at)),
                    self._panels([out], (0,)),
                    self._panels(gate_up, (0, padded(inner))),
                    self._panels([down], (0,)),
                ]
            )
        counts = [len(panels) for panels in tables[0]]
        panels = np.zeros((shape.layers, 4, max(counts), 4), np.int64)
        for at, products in enumerate(tables):
            for number, own in enumerate(products):
                panels[at, number, : len(own)] = own
        norm = self._scale(_module(base).norm)
        self.model = plan.Model(
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head=shape.head_dim,
            inner=inner,
            vocabulary=base.model.get_output_embeddings().weight.shape[0],
            hidden_width=padded(shape.hidden),
            head_width=padded(shape.head_dim),
            attended_width=padded(heads),
            qkv_width=value_at + padded(keys),
            inner_width=padded(inner),
            key_at=key_at,
            value_at=value_at,
            quantized=self.quantized,
            gelu=_ACTIVATIONS[_activation(config)],
            interleaved=self._family in _INTERLEAVED,
            rotary=2 * self._cosines(1)[0].shape[-1],
            epsilon=norm[1],
            attention_scale=float(first.self_attn.scaling),
            hidden_top=largest_activation(shape.hidden),
            attended_top=largest_activation(heads),
            inner_top=largest_activation(inner),
            layers=layers,
            panels=panels,
            counts=np.array(counts, np.int64),
            head_panels=np.array(
                self._panels([_part(base.model.get_output_embeddings())], (0,)), np.int64
            ),
            final_norm=norm[0],
            ropes=self._ropes(1024),
        )

    def reach(self, positions: int) -> None:
        """Have rotary tables for so many positions."""
        there = self.model.ropes.shape[2]
        if positions > there:
            self.model = self.model._replace(ropes=self._ropes(max(positions, 2 * there)))

    def _norms(self, row: Any, layer: Any) -> None:
        first, second = _POST.get(self._family, (None, None))
        attention = layer.self_attn
        before = _NORM_2.get(self._family, "post_attention_layernorm")
        norms = {
            plan.NORM_1: layer.input_layernorm,
            plan.NORM_2: getattr(layer, before),
            plan.POST_1: None if first is None else getattr(layer, first),
            plan.POST_2: None if second is None else getattr(layer, second),
            plan.QUERY_NORM: getattr(attention, "q_norm", None),
            plan.KEY_NORM: getattr(attention, "k_norm", None),
        }
        for column, norm in norms.items():
            row[column] = 0 if norm is None else self._scale(norm)[0]

    def _scale(self, norm: nn.Module) -> tuple[int, float]:
        """The address of what an RMSNorm multiplies with, and its epsilon."""
        found = scale_and_epsilon(norm)
        assert found is not None, "a proven family's norm"
        return self._padded_vector(found[0]), found[1]

    def _padded_vector(self, vector: Tensor) -> int:
        own = np.zeros(padded(len(vector)), np.float32)
        own[: len(vector)] = vector.detach().float().numpy()
        return self._keep(own)

    def _keep(self, array: Any) -> int:
        self._kept.append(array)
        address: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
        return address

    def _bias(self, parts: Sequence[Part], places: Sequence[int], width: int) -> int:
        if all(part.bias is None for part in parts):
            return 0
        whole = np.zeros(width, np.float32)
        for part, place in zip(parts, places, strict=True):
            if part.bias is not None:
                whole[place : place + len(part.bias)] = part.bias.float().numpy()
        return self._keep(whole)

    def _panels(
        self, parts: Sequence[Part], places: Sequence[int]
    ) -> list[tuple[int, int, int, int]]:
        """The weights of a product in pieces; `places` says where each part's outputs go."""
        panels = []
        for part, place in zip(parts, places, strict=True):
            weight = part.weight.contiguous()
            if weight.shape[1] % PAD:
                wider = weight.new_zeros(len(weight), padded(weight.shape[1]))
                wider[:, : weight.shape[1]] = weight
                weight = wider
            start = self._keep(weight)
            scales = (
                0 if part.scale is None else self._keep(part.scale.float().flatten().contiguous())
            )
            row = weight.shape[1] * weight.element_size()
            step = max(12, _PANEL // row // 12 * 12)  # 12: no tile is left half empty
            for at in range(0, len(weight), step):
                count = min(step, len(weight) - at)
                panels.append(
                    (start + at * row, scales + 4 * at if scales else 0, count, place + at)
                )
        return panels

    def _cosines(self, positions: int) -> list[Tensor]:
        """For each rotary table cosines and sines, [2, positions, rotary / 2]."""
        ids = torch.arange(positions)[None]
        tables = []
        for kind in self._rope_types:
            named = {"layer_type": kind} if kind else {}
            with torch.no_grad():
                cos, sin = self._rotary(torch.zeros(1, dtype=torch.float32), ids, **named)
            half = cos.shape[-1] // 2
            tables.append(torch.stack([cos[0, :, :half], sin[0, :, :half]]))
        return tables

    def _ropes(self, positions: int) -> Any:
        return torch.stack(self._cosines(positions)).float().contiguous().numpy()


def _module(base: Base) -> Any:
    """The model without its head."""
    return getattr(base.model, base.model.base_model_prefix)


def _part(linear: Any, rows: slice = slice(None)) -> Part:
    scale = linear.scale[rows] if isinstance(linear, Int8Linear) else None
    bias = None if linear.bias is None else linear.bias.data[rows]
    return Part(linear.weight.data[rows], scale, bias)


def _qkv(layer: Any, heads: int, keys: int) -> list[Part]:
    """Query, key and value, of one layer for all three or of one each."""
    attention = layer.self_attn
    if hasattr(attention, "qkv_proj"):
        cuts = (0, heads, heads + keys, heads + 2 * keys)
        return [_part(attention.qkv_proj, slice(cuts[at], cuts[at + 1])) for at in range(3)]
    return [_part(attention.q_proj), _part(attention.k_proj), _part(attention.v_proj)]


def _gate_up(layer: Any, inner: int) -> list[Part]:
    if hasattr(layer.mlp, "gate_up_proj"):
        both = layer.mlp.gate_up_proj
        return [_part(both, slice(0, inner)), _part(both, slice(inner, 2 * inner))]
    return [_part(layer.mlp.gate_proj), _part(layer.mlp.up_proj)]


def _inner(layer: Any) -> int:
    inputs: int = layer.mlp.down_proj.in_features
    return inputs


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _rope_type(base: Base, layer: int) -> str:
    """Which of a model's rotary tables a layer reads; empty where there is one for all."""
    if base.model.config.model_type != "gemma3_text":
        return ""
    return str(base.model.config.layer_types[layer])


def _window(base: Base, layer: Any) -> int:
    """How many tokens back a layer sees; 0: all."""
    attention = layer.self_attn
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    if base.model.config.model_type in ("mistral", "phi3"):
        return getattr(base.model.config, "sliding_window", None) or 0
    return 0


def refusal(base: Base) -> str | None:
    """Why the lean pass can't run a base of a proven family, None where it can: a feature that no table
    holds.
    """
    config = base.model.config
    checks: dict[str, Callable[[], bool]] = {
        "activation": lambda: _activation(config) in _ACTIVATIONS,
        "attn_logit_softcapping": lambda: not getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": lambda: not getattr(config, "final_logit_softcapping", None),
        "bias of the head": lambda: base.model.get_output_embeddings().bias is None,
        "heads": lambda: base.shape.heads % base.shape.kv_heads == 0,
    }
    return next((name for name, holds in checks.items() if not holds()), None)
