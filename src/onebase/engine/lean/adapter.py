"""An adapter's contribution as the tables of a step."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebase.adapters.contribution import Contribution, LowRank, Scaling
from onebase.adapters.lora import layer_of
from onebase.engine.lean import plan
from onebase.engine.lean.vector import BLOCK, PAD, padded
from onebase.errors import UsageError
from onebase.language import say

# The modules of a linear layer: one, or several that a model type fuses.
_MODULES = {
    "q_proj": (plan.QUERY,),
    "k_proj": (plan.KEY,),
    "v_proj": (plan.VALUE,),
    "qkv_proj": (plan.QUERY, plan.KEY, plan.VALUE),
    "o_proj": (plan.OUT,),
    "gate_proj": (plan.GATE,),
    "up_proj": (plan.UP,),
    "gate_up_proj": (plan.GATE, plan.UP),
    "down_proj": (plan.DOWN_PROJ,),
}
_PRODUCT = {
    plan.QUERY: plan.QKV,
    plan.KEY: plan.QKV,
    plan.VALUE: plan.QKV,
    plan.OUT: plan.OUTPUT,
    plan.GATE: plan.GATE_UP,
    plan.UP: plan.GATE_UP,
    plan.DOWN_PROJ: plan.DOWN,
}


class LeanAdapter:
    """The tables of one contribution: one adapter's rows of `plan.Adapters`.

    `half` stores low-rank matrices in bfloat16. Raises UsageError for a contribution that the lean runner
    cannot apply.
    """

    def __init__(self, model: plan.Model, contribution: Contribution, *, half: bool) -> None:
        layers = len(model.layers)
        self.deltas = np.zeros((layers, plan.MODULES, 4), np.int64)
        self.scales = np.zeros((layers, plan.MODULES), np.float32)
        self.inputs = np.zeros((layers, 4), np.int64)
        masked_prefix = contribution.masked_prefix or (0,) * layers
        self.masked_prefix = np.array(masked_prefix, np.int64)
        self.contribution = contribution
        self.ranks = max((delta.a.shape[0] for delta in contribution.deltas.values()), default=0)
        self._model = model
        self._half = half
        self._arrays: list[Any] = []
        self.prefix_tokens = contribution.prefix_tokens
        self.prefix = self._prefix(contribution)
        check_inputs(contribution)
        for name, scaling in contribution.scalings.items():
            self._scale(name, scaling)
        for name, delta in contribution.deltas.items():
            self._low_rank(name, delta)

    @property
    def bytes(self) -> int:
        """The memory of its tables and matrices."""
        tables = (self.deltas, self.scales, self.inputs, self.masked_prefix)
        return sum(int(array.nbytes) for array in (*tables, *self._arrays))

    def _prefix(self, contribution: Contribution) -> list[tuple[int, int]]:
        """The KV prefix in its own blocks, as (address, tokens)."""
        if contribution.prefix is None:
            return []
        model, tokens = self._model, contribution.prefix_tokens
        keys, values = (part.detach().float().numpy() for part in contribution.prefix)
        blocks = []
        for start in range(0, tokens, BLOCK):
            part = slice(start, min(start + BLOCK, tokens))
            block = packed(keys[:, :, part], values[:, :, part], model)
            blocks.append((self._address(block), part.stop - start))
        return blocks

    def _low_rank(self, name: str, delta: LowRank) -> None:
        layer, modules = _layer_and_modules(name)
        first = 0
        b = delta.b.detach().float()
        if delta.factor is not None:
            b = b * delta.factor.detach().float()[:, None]
        a = self._matrix(delta.a.detach().float())
        for module in modules:
            rows = self._outputs(module) if len(modules) > 1 else len(b)
            self.deltas[layer, module, plan.DELTA_A] = a
            self.deltas[layer, module, plan.DELTA_B] = self._matrix(b[first : first + rows].t())
            self.deltas[layer, module, plan.RANK] = len(delta.a)
            self.scales[layer, module] = delta.scale
            if delta.factor is not None:
                self._factors(layer, module, delta.factor[first : first + rows])
            first += rows

    def _scale(self, name: str, scaling: Scaling) -> None:
        layer, modules = _layer_and_modules(name)
        vector = scaling.vector.detach().float()
        if not scaling.on_inputs:
            first = 0
            for module in modules:
                rows = self._outputs(module) if len(modules) > 1 else len(vector)
                self._factors(layer, module, vector[first : first + rows])
                first += rows
            return
        self.inputs[layer, _PRODUCT[modules[0]]] = self._vector(vector)

    def _factors(self, layer: int, module: int, vector: Tensor) -> None:
        """Multiply a module's output by `vector`, in addition to earlier factors."""
        previous_address = self.deltas[layer, module, plan.FACTORS]
        factors = vector.detach().float()
        if previous_address:
            previous = next(a for a in self._arrays if a.ctypes.data == previous_address)
            factors = factors * torch.from_numpy(previous[: len(factors)])
        self.deltas[layer, module, plan.FACTORS] = self._vector(factors)

    def _outputs(self, module: int) -> int:
        model = self._model
        if module == plan.QUERY:
            return model.heads * model.head
        return model.inner if module in (plan.GATE, plan.UP) else model.kv_heads * model.head

    def _vector(self, vector: Tensor) -> int:
        """The address of a padded copy of a vector."""
        array = np.zeros(padded(len(vector)), np.float32)
        array[: len(vector)] = vector.numpy()
        return self._address(array)

    def _matrix(self, matrix: Tensor) -> int:
        """The address of a copy of a matrix with padded rows, in float32 or bfloat16."""
        kind = torch.bfloat16 if self._half else torch.float32
        converted = matrix.to(kind).contiguous()
        if converted.shape[1] % PAD:
            wide = converted.new_zeros(len(converted), padded(converted.shape[1]))
            wide[:, : converted.shape[1]] = converted
            converted = wide
        return self._address((converted.view(torch.int16) if self._half else converted).numpy())

    def _address(self, array: Any) -> int:
        """The address of an array, which is kept alive."""
        self._arrays.append(array)
        address: int = array.ctypes.data
        return address


def check_inputs(contribution: Contribution) -> None:
    """Raise UsageError if layers that share one input scale it differently: a step computes that input once
    for all of them.
    """
    by_product: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, scaling in contribution.scalings.items():
        if scaling.on_inputs:
            layer, modules = _layer_and_modules(name)
            by_product.setdefault((layer, _PRODUCT[modules[0]]), {})[name] = scaling.vector
    for (_, product), vectors in by_product.items():
        first = next(iter(vectors))
        scaled = {module for name in vectors for module in _layer_and_modules(name)[1]}
        sharing = {module for module, its_product in _PRODUCT.items() if its_product == product}
        if scaled != sharing or not all(torch.equal(vectors[first], v) for v in vectors.values()):
            raise UsageError(
                say(
                    f"The adapter scales the input of {first}, but other layers with the same input scale "
                    "it differently.",
                    f"该适配器缩放了 {first} 的输入，但共用同一输入的其他层缩放方式不同。",
                ),
                say(
                    "Serve it on a GPU or with --precision int8, which apply it layer by layer.",
                    "请在 GPU 上使用，或改用 --precision int8，二者会逐层应用缩放。",
                ),
            )


def packed(
    keys: NDArray[np.float32], values: NDArray[np.float32], model: plan.Model
) -> NDArray[np.float32]:
    """A block of the KV cache, [layers, 2, kv_heads, BLOCK * head_width]: transposed keys, then values.

    `keys` and `values` are [layers, kv_heads, tokens, head], with at most BLOCK tokens.
    """
    layers, heads, tokens, head = keys.shape
    block = np.zeros((layers, 2, heads, BLOCK * model.head_width), np.float32)
    transposed = block[:, 0].reshape(layers, heads, model.head_width, BLOCK)
    transposed[:, :, :head, :tokens] = keys.transpose(0, 1, 3, 2)
    block[:, 1].reshape(layers, heads, BLOCK, model.head_width)[:, :, :tokens, :head] = values
    return block


def unpacked(
    block: NDArray[np.float32], model: plan.Model
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The keys and values of a block, each [layers, kv_heads, BLOCK, head]."""
    layers, _, heads, _ = block.shape
    keys = block[:, 0].reshape(layers, heads, model.head_width, BLOCK).transpose(0, 1, 3, 2)
    values = block[:, 1].reshape(layers, heads, BLOCK, model.head_width)
    return keys[..., : model.head], values[..., : model.head]


def _layer_and_modules(name: str) -> tuple[int, tuple[int, ...]]:
    """The layer and the modules of a linear layer, by its full name."""
    last = name.rsplit(".", 1)[-1]
    return layer_of(name), _MODULES[last]
