"""The KV cache of the lean pass: blocks of tokens that sequences share, and that stay for reuse.

A full block is known by what it depends on: the adapters, and all tokens from the beginning to its end.
A request that begins with the same tokens, on the same adapters, takes it as it is: a chat's next turn,
or the labels of one text. The numbers are those that computing them again would give, bit for bit.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SLAB = 1 << 24  # bytes of blocks that are allocated together


@dataclass
class Block:
    """`tokens` places for keys and values; `users` sequences hold it."""

    address: int
    users: int = 0
    key: bytes | None = None


@dataclass
class BlockTable:
    """The blocks of one sequence, its prompt's first. `keys` has the identity of each full one."""

    root: bytes
    blocks: list[Block] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    reserved: int = 0


class BlockPool:
    """Blocks of `size` tokens, `block_bytes` each, at most `capacity` of them; allocated as needed."""

    def __init__(self, size: int, block_bytes: int, capacity: int) -> None:
        self.size = size
        self.capacity = capacity
        self._block_bytes = block_bytes
        self._slabs: list[NDArray[np.uint8]] = []
        self._made = 0
        self._free: list[Block] = []
        self._known: dict[bytes, Block] = {}
        self._idle: OrderedDict[bytes, Block] = OrderedDict()  # known and unused, oldest first
        self._reserved = 0

    @property
    def allocated(self) -> int:
        """What is allocated."""
        return sum(int(slab.nbytes) for slab in self._slabs)

    @property
    def used(self) -> int:
        """How many blocks sequences hold."""
        return self._made - len(self._free) - len(self._idle)

    @property
    def cached(self) -> int:
        """How many blocks nobody holds that are kept for reuse."""
        return len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-tokens // self.size)

    def has_room(self, tokens: int) -> bool:
        """Whether a sequence of up to so many tokens can be sure of its blocks now."""
        return self._reserved + self.blocks_for(tokens) <= self.capacity

    def open(self, root: bytes, ids: Sequence[int], most: int, reusable: int) -> BlockTable:
        """The table of a sequence of up to `most` tokens that begins with `ids`. It has the known blocks
        among its first `reusable` tokens.
        """
        table = BlockTable(root, reserved=self.blocks_for(most))
        self._reserved += table.reserved
        for start in range(0, reusable - self.size + 1, self.size):
            key = _key(table.keys[-1] if table.keys else root, ids[start : start + self.size])
            block = self._known.get(key)
            if block is None:
                break
            self._idle.pop(key, None)
            block.users += 1
            table.blocks.append(block)
            table.keys.append(key)
        return table

    def extend(self, table: BlockTable, tokens: int) -> None:
        """Give a sequence blocks for so many tokens in all."""
        while len(table.blocks) < self.blocks_for(tokens):
            table.blocks.append(self._take())

    def note(self, table: BlockTable, ids: Sequence[int], start: int) -> list[Block]:
        """Make blocks known that are full: `ids` are a sequence's tokens from `start`, the first that no
        known block of it holds. Returns those that nobody knew.
        """
        new = []
        for at in range(0, len(ids) - self.size + 1, self.size):
            number = (start + at) // self.size
            key = _key(table.keys[-1] if table.keys else table.root, ids[at : at + self.size])
            table.keys.append(key)
            block = table.blocks[number]
            if key not in self._known and block.key is None:
                block.key = key
                self._known[key] = block
                new.append(block)
        return new

    def disown(self, blocks: Sequence[Block]) -> None:
        """Make blocks unknown that are held and were noted, but not filled."""
        for block in blocks:
            assert block.key is not None
            del self._known[block.key]
            block.key = None

    def close(self, table: BlockTable) -> None:
        """Take a sequence's blocks back; known ones stay for reuse while there is room."""
        self._reserved -= table.reserved
        # The last ones go first, so that beginnings are kept the longest.
        for block in reversed(table.blocks):
            block.users -= 1
            if block.users:
                continue
            if block.key is None:
                self._free.append(block)
            else:
                self._idle[block.key] = block
        table.blocks = []
        table.reserved = 0

    def read(self, block: Block, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The numbers in a block as an array of `shape`, not copied."""
        for slab in self._slabs:
            offset = block.address - slab.ctypes.data
            if 0 <= offset < slab.nbytes:
                return slab[offset : offset + self._block_bytes].view(np.float32).reshape(shape)
        raise AssertionError("a block of another pool")

    def forget(self) -> None:
        """Drop all that is kept for reuse."""
        while self._idle:
            self._drop_oldest()

    def _drop_oldest(self) -> Block:
        key, block = self._idle.popitem(last=False)
        del self._known[key]
        block.key = None
        self._free.append(block)
        return block

    def _take(self) -> Block:
        if not self._free:
            if self._idle and self._made >= self.capacity:
                self._drop_oldest()
            else:
                self._allocate()
        block = self._free.pop()
        block.users = 1
        return block

    def _allocate(self) -> None:
        count = max(1, min(_SLAB // self._block_bytes, self.capacity - self._made))
        slab = np.zeros(count * self._block_bytes, np.uint8)  # zeros: the padding of heads stays 0
        self._slabs.append(slab)
        start = slab.ctypes.data
        self._free += [Block(start + at * self._block_bytes) for at in reversed(range(count))]
        self._made += count


def _key(before: bytes, ids: Sequence[int]) -> bytes:
    """The identity of a block by the one before it (the adapters' for the first) and its tokens."""
    return hashlib.blake2b(before + np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()
