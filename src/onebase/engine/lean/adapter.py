"""What an adapter brings, as the tables of a step."""

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

# Where the modules of a layer are in its products: module, or several that a family has in one layer.
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
    """One contribution's tables: see `plan.Adapters`, of which these are one adapter's rows.

    `half` holds low-rank matrices in bfloat16. Raises UsageError for what the lean pass can't apply.
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
        self._kept: list[Any] = []
        self.prefix_tokens = contribution.prefix_tokens
        self.prefix = self._prefix(contribution)
        check_inputs(contribution)
        for name, scaling in contribution.scalings.items():
            self._scale(name, scaling)
        for name, delta in contribution.deltas.items():
            self._low_rank(name, delta)

    @property
    def bytes(self) -> int:
        """What its tables and matrices take."""
        own = (self.deltas, self.scales, self.inputs, self.masked_prefix)
        return sum(int(array.nbytes) for array in (*own, *self._kept))

    def _prefix(self, contribution: Contribution) -> list[tuple[int, int]]:
        """The KV prefix in blocks of its own: (address, tokens) of each."""
        if contribution.prefix is None:
            return []
        model, tokens = self._model, contribution.prefix_tokens
        keys, values = (part.detach().float().numpy() for part in contribution.prefix)
        blocks = []
        for start in range(0, tokens, BLOCK):
            held = slice(start, min(start + BLOCK, tokens))
            block = packed(keys[:, :, held], values[:, :, held], model)
            blocks.append((self._keep(block), held.stop - start))
        return blocks

    def _low_rank(self, name: str, delta: LowRank) -> None:
        layer, modules = _place(name)
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
        layer, modules = _place(name)
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
        """Multiply a module's output by `vector`, beside what already does."""
        before = self.deltas[layer, module, plan.FACTORS]
        own = vector.detach().float()
        if before:
            held = next(array for array in self._kept if array.ctypes.data == before)
            own = own * torch.from_numpy(held[: len(own)])
        self.deltas[layer, module, plan.FACTORS] = self._vector(own)

    def _outputs(self, module: int) -> int:
        model = self._model
        if module == plan.QUERY:
            return model.heads * model.head
        return model.inner if module in (plan.GATE, plan.UP) else model.kv_heads * model.head

    def _vector(self, vector: Tensor) -> int:
        own = np.zeros(padded(len(vector)), np.float32)
        own[: len(vector)] = vector.numpy()
        return self._keep(own)

    def _matrix(self, matrix: Tensor) -> int:
        """A matrix with padded rows, in float32 or as the bits of bfloat16."""
        kind = torch.bfloat16 if self._half else torch.float32
        own = matrix.to(kind).contiguous()
        if own.shape[1] % PAD:
            wide = own.new_zeros(len(own), padded(own.shape[1]))
            wide[:, : own.shape[1]] = own
            own = wide
        return self._keep((own.view(torch.int16) if self._half else own).numpy())

    def _keep(self, array: Any) -> int:
        self._kept.append(array)
        address: int = array.ctypes.data
        return address


def check_inputs(contribution: Contribution) -> None:
    """Raise UsageError where the inputs of some layers are scaled, but not alike those of the layers that
    read the same tensor: a step computes it once for all of them.
    """
    shared: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, scaling in contribution.scalings.items():
        if scaling.on_inputs:
            layer, modules = _place(name)
            shared.setdefault((layer, _PRODUCT[modules[0]]), {})[name] = scaling.vector
    for (_, product), vectors in shared.items():
        first = next(iter(vectors))
        there = {module for name in vectors for module in _place(name)[1]}
        sharing = {module for module, own in _PRODUCT.items() if own == product}
        if there != sharing or not all(torch.equal(vectors[first], v) for v in vectors.values()):
            raise UsageError(
                say(
                    f"The adapter scales the inputs of {first}, but not alike those of the layers that "
                    "read the same tensor.",
                    f"该适配器缩放了 {first} 的输入，但与读取同一张量的其他层不一致。",
                ),
                say(
                    "Serve it on a GPU or with --precision int8, which apply it layer by layer.",
                    "请在 GPU 上使用，或改用 --precision int8（逐层应用）。",
                ),
            )


def packed(
    keys: NDArray[np.float32], values: NDArray[np.float32], model: plan.Model
) -> NDArray[np.float32]:
    """A block of the KV cache: keys transposed, then values, [layers, 2, kv_heads, BLOCK * head_width].

    `keys` and `values` are [layers, kv_heads, tokens, head], BLOCK tokens at most.
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
    """Keys and values of a block, each [layers, kv_heads, BLOCK, head]."""
    layers, _, heads, _ = block.shape
    keys = block[:, 0].reshape(layers, heads, model.head_width, BLOCK).transpose(0, 1, 3, 2)
    values = block[:, 1].reshape(layers, heads, BLOCK, model.head_width)
    return keys[..., : model.head], values[..., : model.head]


def _place(name: str) -> tuple[int, tuple[int, ...]]:
    """The layer and the modules that a linear layer's full name means."""
    last = name.rsplit(".", 1)[-1]
    return layer_of(name), _MODULES[last]
