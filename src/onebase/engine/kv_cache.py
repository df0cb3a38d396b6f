"""The KV cache of the generic pass, one slot a sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.engine.attention import Rule, behind, unseen_in
from onebase.model.base import ModelShape


class KVCache:
    """Keys and values of up to `slots` sequences, [layers, rows, kv_heads, capacity, head_dim].

    Rows 0 to `used` - 1 are in use; a sequence that ends gives its row to the last one, so
    every step reads one contiguous block. Rows and capacity double when they are outgrown, and are
    given back when the last sequence ends.
    """

    def __init__(self, shape: ModelShape, slots: int, device: torch.device, dtype: torch.dtype):
        self._shape = shape
        self._device = device
        self._dtype = dtype
        self.slots = slots
        self.lengths: list[int] = []
        self._unseen: list[tuple[int, ...]] = []
        self._keys = self._values = self._block(0, 0)

    def _block(self, rows: int, capacity: int) -> Tensor:
        s = self._shape
        return torch.zeros(
            s.layers,
            rows,
            s.kv_heads,
            capacity,
            s.head_dim,
            device=self._device,
            dtype=self._dtype,
        )

    @property
    def used(self) -> int:
        """How many slots hold a sequence."""
        return len(self.lengths)

    def admit(self, keys: Tensor, values: Tensor, masked_prefix: tuple[int, ...] = ()) -> None:
        """Put a sequence's keys and values, [layers, kv_heads, tokens, head_dim], in a slot. They
        begin with its prefix, `masked_prefix` of which each layer does not attend to.
        """
        tokens = keys.shape[2]
        self._reserve(self.used + 1, tokens + 1)
        self._keys[:, self.used, :, :tokens] = keys
        self._values[:, self.used, :, :tokens] = values
        self.lengths.append(tokens)
        self._unseen.append(masked_prefix)

    def release(self, slot: int) -> None:
        """Free a slot; the last sequence moves into it."""
        last = self.used - 1
        if slot != last:
            length = self.lengths[last]
            self._keys[:, slot, :, :length] = self._keys[:, last, :, :length]
            self._values[:, slot, :, :length] = self._values[:, last, :, :length]
            self.lengths[slot] = length
            self._unseen[slot] = self._unseen[last]
        self.lengths.pop()
        self._unseen.pop()
        if not self.lengths:
            self._keys = self._values = self._block(0, 0)

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self._keys.shape[1] * self._keys.shape[3]

    @property
    def bytes(self) -> int:
        """The memory that is taken."""
        return 2 * self._keys.nbytes

    def step(self) -> "DecodeAttention":
        """Make room for one more token a sequence and return the attention that adds it."""
        self._reserve(self.used, max(self.lengths) + 1)
        attention = DecodeAttention(self._keys, self._values, self.lengths, self._unseen)
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
        # Both are made before either takes its place: there may be no room for the second.
        keys, values = self._block(rows, capacity), self._block(rows, capacity)
        for old, new in ((self._keys, keys), (self._values, values)):
            new[:, : old.shape[1], :, : old.shape[3]] = old
        self._keys, self._values = keys, values


class DecodeAttention:
    """Each sequence's newest token attends to the whole of its own sequence, but for what is
    `masked_prefix` of its prefix in a layer.
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
        self._unseen = tuple(masked_prefix)
        self._count = len(lengths)
        self._longest = max(lengths) + 1
        self._slots = torch.arange(self._count, device=keys.device)
        self._at = torch.tensor(lengths, device=keys.device)
        ago = self._at[:, None] - torch.arange(self._longest, device=keys.device)[None]
        self._ago = ago
        self._masks: dict[tuple[tuple[int, ...], int | None, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """As Attention.attend, one token a sequence."""
        heads, count, head_dim = query.shape
        kv_heads = key.shape[0]
        group = heads // kv_heads
        keys, values = self._keys[layer], self._values[layer]
        keys[self._slots, :, self._at] = key.transpose(0, 1).to(keys.dtype)
        values[self._slots, :, self._at] = value.transpose(0, 1).to(keys.dtype)
        q = query.transpose(0, 1).reshape(count, kv_heads, group, head_dim)
        mask = self._mask(unseen_in(layer, self._unseen), rule.window, group, query.dtype)
        seen = slice(0, self._longest)
        k, v = keys[:count, :, seen].to(q.dtype), values[:count, :, seen].to(q.dtype)
        return rule.apply(q, k, v, mask).reshape(count, heads, head_dim)

    def _mask(
        self, masked_prefix: tuple[int, ...], window: int | None, group: int, dtype: torch.dtype
    ) -> Tensor:
        wanted = (masked_prefix, window, group)
        if wanted not in self._masks:
            seen = self._ago >= 0
            if masked_prefix:
                seen = seen & behind(masked_prefix, self._longest, seen.device)
            if window is not None:
                seen = seen & (self._ago < window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask = mask.masked_fill(~seen, float("-inf"))
            self._masks[wanted] = mask[:, None, None].expand(-1, 1, group, -1).contiguous()
        return self._masks[wanted]
