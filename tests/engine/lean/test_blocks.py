"""The lean pass's KV cache: who gets which block, what is kept, and what is never shared."""

import pytest

from onebase.engine.lean.blocks import BlockPool, BlockTable

IDS = list(range(100, 200))


def pool(capacity: int = 8) -> BlockPool:
    return BlockPool(16, 1024, capacity)


def filled(kv_pool: BlockPool, root: bytes, tokens: int, reusable: int | None = None) -> BlockTable:
    """A sequence of so many tokens that was computed whole."""
    table = kv_pool.open(root, IDS[:tokens], tokens, tokens - 1 if reusable is None else reusable)
    start = 16 * len(table.blocks)
    kv_pool.extend(table, tokens)
    kv_pool.register(table, IDS[start:tokens], start)
    return table


def test_a_known_beginning_is_shared_while_both_run() -> None:
    kv_pool = pool()
    first, second = filled(kv_pool, b"a", 40), filled(kv_pool, b"a", 40)
    assert [one is two for one, two in zip(first.blocks, second.blocks, strict=True)] == [
        True,
        True,
        False,
    ]
    assert kv_pool.used == 4
    kv_pool.close(first)
    assert kv_pool.used == 3  # the two shared ones are still held
    kv_pool.close(second)
    assert (kv_pool.used, kv_pool.cached) == (0, 2)


def test_other_adapters_and_other_beginnings_share_nothing() -> None:
    kv_pool = pool()
    kv_pool.close(filled(kv_pool, b"a", 40))
    assert kv_pool.open(b"b", IDS[:40], 40, 39).blocks == []
    assert kv_pool.open(b"a", [1, *IDS[1:40]], 40, 39).blocks == []
    assert len(kv_pool.open(b"a", [*IDS[:20], 0, *IDS[21:40]], 40, 39).blocks) == 1


@pytest.mark.parametrize(("reusable", "blocks"), [(0, 0), (15, 0), (16, 1), (31, 1), (32, 2)])
def test_no_more_is_reused_than_may_be(reusable: int, blocks: int) -> None:
    kv_pool = pool()
    kv_pool.close(filled(kv_pool, b"a", 48))
    assert len(kv_pool.open(b"a", IDS[:48], 48, reusable).blocks) == blocks


def test_room_is_reserved_and_kept_blocks_give_way_oldest_first() -> None:
    kv_pool = pool(capacity=4)
    kv_pool.close(filled(kv_pool, b"a", 32))
    kv_pool.close(filled(kv_pool, b"b", 32))
    assert kv_pool.cached == 4
    assert kv_pool.has_room(64)
    table = kv_pool.open(b"c", IDS[:20], 40, 19)
    assert kv_pool.has_room(16)
    assert not kv_pool.has_room(17)
    kv_pool.extend(table, 20)
    kv_pool.extend(table, 40)
    assert len(table.blocks) == 3
    assert kv_pool.open(b"a", IDS[:32], 32, 31).blocks == []
    kv_pool.close(table)
    assert kv_pool.has_room(32)


def test_a_sequence_beyond_the_capacity_gets_its_blocks_all_the_same() -> None:
    kv_pool = pool(capacity=1)
    table = kv_pool.open(b"a", IDS[:40], 40, 39)
    kv_pool.extend(table, 40)
    assert len({block.address for block in table.blocks}) == 3


def test_forgetting_frees_what_is_kept() -> None:
    kv_pool = pool()
    kv_pool.close(filled(kv_pool, b"a", 40))
    kv_pool.clear()
    assert kv_pool.cached == 0
    assert kv_pool.open(b"a", IDS[:40], 40, 39).blocks == []
