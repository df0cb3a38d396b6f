"""The paged KV cache of the lean runner, with prefix caching.

A full block is identified by everything that it depends on: the adapters, and all tokens from the start of
the text to the end of the block. A request that begins with the same tokens, on the same adapters, reuses it:
the next turn of a chat, or the labels of one text. The numbers are identical to recomputed ones, bit for bit.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SLAB = 1 << 24  # bytes per allocation


@dataclass
class Block:
    """A block of keys and values, used by `users` sequences. `key` identifies its contents."""

    address: int
    users: int = 0
    key: bytes | None = None


@dataclass
class BlockTable:
    """The blocks of one sequence in order. `keys` has the key of each full block; `root` identifies the
    adapters. `reserved` is the number of blocks that the sequence may need.
    """

    root: bytes
    blocks: list[Block] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    reserved: int = 0


class BlockPool:
    """Blocks of `size` tokens and `block_bytes` bytes, at most `capacity`, allocated when needed."""

    def __init__(self, size: int, block_bytes: int, capacity: int) -> None:
        self.size = size
        self.capacity = capacity
        self._block_bytes = block_bytes
        self._slabs: list[NDArray[np.uint8]] = []
        self._block_count = 0
        self._free: list[Block] = []
        self._by_key: dict[bytes, Block] = {}
        self._unused: OrderedDict[bytes, Block] = OrderedDict()  # cached ones, oldest first
        self._reserved = 0

    @property
    def allocated(self) -> int:
        """The allocated memory in bytes."""
        return sum(int(slab.nbytes) for slab in self._slabs)

    @property
    def used(self) -> int:
        """The number of blocks in use by sequences."""
        return self._block_count - len(self._free) - len(self._unused)

    @property
    def cached(self) -> int:
        """The number of unused blocks that are cached for reuse."""
        return len(self._unused)

    def blocks_for(self, tokens: int) -> int:
        """The number of blocks for `tokens` tokens."""
        return -(-tokens // self.size)

    def has_room(self, tokens: int) -> bool:
        """Whether all blocks of a sequence of up to `tokens` tokens can be reserved now."""
        return self._reserved + self.blocks_for(tokens) <= self.capacity

    def open(self, root: bytes, ids: Sequence[int], max_tokens: int, reusable: int) -> BlockTable:
        """The table of a new sequence of up to `max_tokens` tokens that begins with `ids`. It contains the
        cached blocks of its first `reusable` tokens.
        """
        table = BlockTable(root, reserved=self.blocks_for(max_tokens))
        self._reserved += table.reserved
        for start in range(0, reusable - self.size + 1, self.size):
            key = _key(table.keys[-1] if table.keys else root, ids[start : start + self.size])
            block = self._by_key.get(key)
            if block is None:
                break
            self._unused.pop(key, None)
            block.users += 1
            table.blocks.append(block)
            table.keys.append(key)
        return table

    def extend(self, table: BlockTable, tokens: int) -> None:
        """Allocate blocks to a sequence until they hold `tokens` tokens."""
        while len(table.blocks) < self.blocks_for(tokens):
            table.blocks.append(self._take())

    def register(self, table: BlockTable, ids: Sequence[int], start: int) -> list[Block]:
        """Register full blocks for reuse. `ids` are a sequence's tokens from `start` on, which is the end of
        its registered blocks. Returns the blocks whose contents were not registered before.
        """
        new = []
        for at in range(0, len(ids) - self.size + 1, self.size):
            number = (start + at) // self.size
            key = _key(table.keys[-1] if table.keys else table.root, ids[at : at + self.size])
            table.keys.append(key)
            block = table.blocks[number]
            if key not in self._by_key and block.key is None:
                block.key = key
                self._by_key[key] = block
                new.append(block)
        return new

    def unregister(self, blocks: Sequence[Block]) -> None:
        """Unregister blocks that are in use but were never filled."""
        for block in blocks:
            assert block.key is not None
            del self._by_key[block.key]
            block.key = None

    def close(self, table: BlockTable) -> None:
        """Free a sequence's blocks. Registered ones stay cached until their memory is needed."""
        self._reserved -= table.reserved
        # The last blocks first, so that the beginnings of texts stay cached the longest.
        for block in reversed(table.blocks):
            block.users -= 1
            if block.users:
                continue
            if block.key is None:
                self._free.append(block)
            else:
                self._unused[block.key] = block
        table.blocks = []
        table.reserved = 0

    def read(self, block: Block, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A view of a block as an array of `shape`."""
        for slab in self._slabs:
            offset = block.address - slab.ctypes.data
            if 0 <= offset < slab.nbytes:
                return slab[offset : offset + self._block_bytes].view(np.float32).reshape(shape)
        raise AssertionError("a block of another pool")

    def clear(self) -> None:
        """Evict all cached blocks."""
        while self._unused:
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        key, block = self._unused.popitem(last=False)
        del self._by_key[key]
        block.key = None
        self._free.append(block)

    def _take(self) -> Block:
        if not self._free:
            if self._unused and self._block_count >= self.capacity:
                self._evict_oldest()
            else:
                self._allocate()
        block = self._free.pop()
        block.users = 1
        return block

    def _allocate(self) -> None:
        count = max(1, min(_SLAB // self._block_bytes, self.capacity - self._block_count))
        slab = np.zeros(count * self._block_bytes, np.uint8)  # zeros: the padding of heads stays 0
        self._slabs.append(slab)
        start = slab.ctypes.data
        self._free += [Block(start + i * self._block_bytes) for i in reversed(range(count))]
        self._block_count += count


def _key(previous: bytes, ids: Sequence[int]) -> bytes:
    """The key of a block, from the key of the previous one (the root for the first) and its tokens."""
    return hashlib.blake2b(previous + np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()
