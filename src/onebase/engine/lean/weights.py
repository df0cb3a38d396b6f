"""A base's weights as the tables of a step. Only weights that need padding are copied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onebase.engine.lean import plan
from onebase.engine.lean.matmul import largest_activation
from onebase.engine.lean.vector import PAD, padded
from onebase.engine.norm import scale_and_epsilon
from onebase.model.base import Base
from onebase.model.int8_weights import Int8Linear

_PANEL = 32768  # bytes of weights per piece of a product
_ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}
_INTERLEAVED = {"glm", "glm4"}
# The names of the norms after attention and feed-forward, by model type.
_POST_NORMS = {
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
_NORM_2 = {"gemma3_text": "pre_feedforward_layernorm"}


@dataclass(frozen=True)
class Part:
    """Some rows of a linear layer's weight, [outputs, inputs]: in float32, or in int8 with a scale per
    output.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


class LeanWeights:
    """The tables of a base, and the arrays that they point to."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._arrays: list[Any] = []
        config = base.model.config
        self._family = config.model_type
        shape = base.shape
        first: Any = base.layers[0]
        self.quantized = base.precision.name == "w8a8"
        heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        key_at, inner = padded(heads), int(first.mlp.down_proj.in_features)
        value_at = key_at + padded(keys)
        layers = np.zeros((shape.layers, plan.LAYER_COLUMNS), np.int64)
        tables: list[list[list[tuple[int, int, int, int]]]] = []
        self._rotary = _module(base).rotary_emb
        self._rope_types = sorted({_rope_type(base, number) for number in range(shape.layers)})
        layer: Any
        for number, layer in enumerate(base.layers):
            row = layers[number]
            row[plan.ROPE] = self._rope_types.index(_rope_type(base, number))
            row[plan.WINDOW] = _window(base, layer)
            self._norms(row, layer)
            qkv = _qkv(layer, heads, keys)
            gate_up = _gate_up(layer, inner)
            row[plan.BIAS_QKV] = self._bias(qkv, (0, key_at, value_at), value_at + padded(keys))
            row[plan.BIAS_GATE_UP] = self._bias(gate_up, (0, padded(inner)), 2 * padded(inner))
            out, down = _part(layer.self_attn.o_proj), _part(layer.mlp.down_proj)
            row[plan.BIAS_OUT] = self._bias([out], (0,), padded(shape.hidden))
            row[plan.BIAS_DOWN] = self._bias([down], (0,), padded(shape.hidden))
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
        for number, products in enumerate(tables):
            for product, rows in enumerate(products):
                panels[number, product, : len(rows)] = rows
        norm = self._norm(_module(base).norm)
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

    def reserve(self, positions: int) -> None:
        """Extend the rotary tables to `positions` positions."""
        current = self.model.ropes.shape[2]
        if positions > current:
            self.model = self.model._replace(ropes=self._ropes(max(positions, 2 * current)))

    def _norms(self, row: Any, layer: Any) -> None:
        """Set the columns of a layer's norms."""
        post_1, post_2 = _POST_NORMS.get(self._family, (None, None))
        attention = layer.self_attn
        norm_2 = _NORM_2.get(self._family, "post_attention_layernorm")
        norms = {
            plan.NORM_1: layer.input_layernorm,
            plan.NORM_2: getattr(layer, norm_2),
            plan.POST_1: None if post_1 is None else getattr(layer, post_1),
            plan.POST_2: None if post_2 is None else getattr(layer, post_2),
            plan.QUERY_NORM: getattr(attention, "q_norm", None),
            plan.KEY_NORM: getattr(attention, "k_norm", None),
        }
        for column, norm in norms.items():
            row[column] = 0 if norm is None else self._norm(norm)[0]

    def _norm(self, norm: nn.Module) -> tuple[int, float]:
        """The address of an RMSNorm's scale, and its epsilon."""
        parameters = scale_and_epsilon(norm)
        assert parameters is not None, "the norm of a tested model type"
        scale, epsilon = parameters
        vector = np.zeros(padded(len(scale)), np.float32)
        vector[: len(scale)] = scale.detach().float().numpy()
        return self._address(vector), epsilon

    def _address(self, array: Any) -> int:
        """The address of an array, which is kept alive."""
        self._arrays.append(array)
        address: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
        return address

    def _bias(self, parts: Sequence[Part], offsets: Sequence[int], width: int) -> int:
        """The address of the parts' biases, each at its offset; 0 if there are none."""
        if all(part.bias is None for part in parts):
            return 0
        bias = np.zeros(width, np.float32)
        for part, offset in zip(parts, offsets, strict=True):
            if part.bias is not None:
                bias[offset : offset + len(part.bias)] = part.bias.float().numpy()
        return self._address(bias)

    def _panels(
        self, parts: Sequence[Part], offsets: Sequence[int]
    ) -> list[tuple[int, int, int, int]]:
        """The weights of a product in pieces. A part's outputs begin at its offset."""
        panels = []
        for part, offset in zip(parts, offsets, strict=True):
            weight = part.weight.contiguous()
            if weight.shape[1] % PAD:
                wider = weight.new_zeros(len(weight), padded(weight.shape[1]))
                wider[:, : weight.shape[1]] = weight
                weight = wider
            start = self._address(weight)
            scales = 0
            if part.scale is not None:
                scales = self._address(part.scale.float().flatten().contiguous())
            row_bytes = weight.shape[1] * weight.element_size()
            step = max(12, _PANEL // row_bytes // 12 * 12)  # a multiple of all tiles' outputs
            for row in range(0, len(weight), step):
                count = min(step, len(weight) - row)
                row_scales = scales + 4 * row if scales else 0
                panels.append((start + row * row_bytes, row_scales, count, offset + row))
        return panels

    def _cosines(self, positions: int) -> list[Tensor]:
        """The cosines and sines of each rotary table, [2, positions, rotary / 2]."""
        ids = torch.arange(positions)[None]
        tables = []
        for kind in self._rope_types:
            options = {"layer_type": kind} if kind else {}
            with torch.no_grad():
                cos, sin = self._rotary(torch.zeros(1, dtype=torch.float32), ids, **options)
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
    """The parts of query, key and value, from one fused linear layer or from three."""
    attention = layer.self_attn
    if hasattr(attention, "qkv_proj"):
        cuts = (0, heads, heads + keys, heads + 2 * keys)
        return [_part(attention.qkv_proj, slice(*cut)) for cut in pairwise(cuts)]
    return [_part(attention.q_proj), _part(attention.k_proj), _part(attention.v_proj)]


def _gate_up(layer: Any, inner: int) -> list[Part]:
    if hasattr(layer.mlp, "gate_up_proj"):
        fused = layer.mlp.gate_up_proj
        return [_part(fused, slice(0, inner)), _part(fused, slice(inner, 2 * inner))]
    return [_part(layer.mlp.gate_proj), _part(layer.mlp.up_proj)]


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _rope_type(base: Base, layer: int) -> str:
    """The layer's type of rotary embedding; empty if all layers share one."""
    if base.model.config.model_type != "gemma3_text":
        return ""
    return str(base.model.config.layer_types[layer])


def _window(base: Base, layer: Any) -> int:
    """The size of a layer's sliding window; 0: none."""
    attention = layer.self_attn
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    if base.model.config.model_type in ("mistral", "phi3"):
        return getattr(base.model.config, "sliding_window", None) or 0
    return 0


def unsupported_feature(base: Base) -> str | None:
    """The feature of a base of a tested model type that the lean runner does not support; None if it
    supports all.
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
