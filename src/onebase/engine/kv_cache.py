"""The KV cache of the generic runner, with one slot per sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.engine.attention import Rule, after_masked_keys, masked_keys_in
from onebase.model.base import ModelShape


class KVCache:
    """Keys and values of up to `slots` sequences, [layers, rows, kv_heads, capacity, head_dim].

    Rows 0 to `used` - 1 are in use. When a sequence ends, the last one moves into its row, so that
    every step reads one contiguous block. Rows and capacity double when they are exceeded; all
    memory is freed when the last sequence ends.
    """

    def __init__(self, shape: ModelShape, slots: int, device: torch.device, dtype: torch.dtype):
        self._shape = shape
        self._device = device
        self._dtype = dtype
        self.slots = slots
        self.lengths: list[int] = []
        self._masked_prefixes: list[tuple[int, ...]] = []
        self._keys = self._values = self._block(0, 0)

    def _block(self, rows: int, capacity: int) -> Tensor:
        layers, kv_heads, head_dim = self._shape.layers, self._shape.kv_heads, self._shape.head_dim
        size = (layers, rows, kv_heads, capacity, head_dim)
        return torch.zeros(size, device=self._device, dtype=self._dtype)

    @property
    def used(self) -> int:
        """How many slots are in use."""
        return len(self.lengths)

    def admit(self, keys: Tensor, values: Tensor, masked_prefix: tuple[int, ...] = ()) -> None:
        """Store a sequence's keys and values, [layers, kv_heads, tokens, head_dim], in the next slot.
        They begin with its prefix, of which each layer masks the first `masked_prefix` tokens.
        """
        tokens = keys.shape[2]
        self._reserve(self.used + 1, tokens + 1)
        self._keys[:, self.used, :, :tokens] = keys
        self._values[:, self.used, :, :tokens] = values
        self.lengths.append(tokens)
        self._masked_prefixes.append(masked_prefix)

    def release(self, slot: int) -> None:
        """Free a slot. The last sequence moves into it."""
        last = self.used - 1
        if slot != last:
            length = self.lengths[last]
            self._keys[:, slot, :, :length] = self._keys[:, last, :, :length]
            self._values[:, slot, :, :length] = self._values[:, last, :, :length]
            self.lengths[slot] = length
            self._masked_prefixes[slot] = self._masked_prefixes[last]
        self.lengths.pop()
        self._masked_prefixes.pop()
        if not self.lengths:
            self._keys = self._values = self._block(0, 0)

    @property
    def capacity(self) -> int:
        """How many tokens fit into the allocated memory."""
        return self._keys.shape[1] * self._keys.shape[3]

    @property
    def bytes(self) -> int:
        """The allocated memory."""
        return 2 * self._keys.nbytes

    def step(self) -> "DecodeAttention":
        """Reserve room for one more token per sequence and return the attention that adds it."""
        self._reserve(self.used, max(self.lengths) + 1)
        attention = DecodeAttention(self._keys, self._values, self.lengths, self._masked_prefixes)
        self.lengths = [length + 1 for length in self.lengths]
        return attention

    def _reserve(self, sequences: int, tokens: int) -> None:
        rows, capacity = self._keys.shape[1], self._keys.shape[3]
        if sequences <= rows and tokens <= capacity:
            return
        if sequences > rows:
            rows = min(max(sequences, 2 * rows, 4), self.slots)
        if tokens > capacity:
            capacity = max(tokens, 2 * capacity, 64)
        # Both are allocated before either is replaced, since the second allocation may fail.
        keys, values = self._block(rows, capacity), self._block(rows, capacity)
        for old, new in ((self._keys, keys), (self._values, values)):
            new[:, : old.shape[1], :, : old.shape[3]] = old
        self._keys, self._values = keys, values


class DecodeAttention:
    """Each sequence's newest token attends to its whole sequence, except for the first `masked_prefix`
    tokens of its prefix in a layer.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        lengths: list[int],
        masked_prefix: Sequence[tuple[int, ...]],
    ) -> None:
        self._keys = keys
        self._values = values
        self._masked_prefixes = tuple(masked_prefix)
        self._count = len(lengths)
        self._key_length = max(lengths) + 1
        self._slots = torch.arange(self._count, device=keys.device)
        self._positions = torch.tensor(lengths, device=keys.device)
        key_positions = torch.arange(self._key_length, device=keys.device)
        self._distance = self._positions[:, None] - key_positions[None]
        self._masks: dict[tuple[tuple[int, ...], int | None, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """As Attention.attend, for one token per sequence."""
        heads, count, head_dim = query.shape
        kv_heads = key.shape[0]
        group = heads // kv_heads
        keys, values = self._keys[layer], self._values[layer]
        keys[self._slots, :, self._positions] = key.transpose(0, 1).to(keys.dtype)
        values[self._slots, :, self._positions] = value.transpose(0, 1).to(keys.dtype)
        q = query.transpose(0, 1).reshape(count, kv_heads, group, head_dim)
        masked_prefix = masked_keys_in(layer, self._masked_prefixes)
        mask = self._mask(masked_prefix, rule.window, group, query.dtype)
        k = keys[:count, :, : self._key_length].to(q.dtype)
        v = values[:count, :, : self._key_length].to(q.dtype)
        return rule.apply(q, k, v, mask).reshape(count, heads, head_dim)

    def _mask(
        self, masked_prefix: tuple[int, ...], window: int | None, group: int, dtype: torch.dtype
    ) -> Tensor:
        key = (masked_prefix, window, group)
        if key not in self._masks:
            visible = self._distance >= 0
            if masked_prefix:
                visible = visible & after_masked_keys(
                    masked_prefix, self._key_length, visible.device
                )
            if window is not None:
                visible = visible & (self._distance < window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            mask = mask.masked_fill(~visible, float("-inf"))
            self._masks[key] = mask[:, None, None].expand(-1, 1, group, -1).contiguous()
        return self._masks[key]
