"""The lean pass's KV cache: who gets which block, what is kept, and what is never shared."""

import pytest

from onebase.engine.lean.blocks import BlockPool, BlockTable

IDS = list(range(100, 200))


def pool(capacity: int = 8) -> BlockPool:
    return BlockPool(16, 1024, capacity)


def filled(own: BlockPool, root: bytes, tokens: int, reusable: int | None = None) -> BlockTable:
    """A sequence of so many tokens that was computed whole."""
    table = own.open(root, IDS[:tokens], tokens, tokens - 1 if reusable is None else reusable)
    start = 16 * len(table.blocks)
    own.extend(table, tokens)
    own.note(table, IDS[start:tokens], start)
    return table


def test_a_known_beginning_is_shared_while_both_run() -> None:
    own = pool()
    first, second = filled(own, b"a", 40), filled(own, b"a", 40)
    assert [one is two for one, two in zip(first.blocks, second.blocks, strict=True)] == [
        True,
        True,
        False,
    ]
    assert own.used == 4
    own.close(first)
    assert own.used == 3  # the two shared ones are still held
    own.close(second)
    assert (own.used, own.cached) == (0, 2)


def test_other_adapters_and_other_beginnings_share_nothing() -> None:
    own = pool()
    own.close(filled(own, b"a", 40))
    assert own.open(b"b", IDS[:40], 40, 39).blocks == []
    assert own.open(b"a", [1, *IDS[1:40]], 40, 39).blocks == []
    assert len(own.open(b"a", [*IDS[:20], 0, *IDS[21:40]], 40, 39).blocks) == 1


@pytest.mark.parametrize(("reusable", "blocks"), [(0, 0), (15, 0), (16, 1), (31, 1), (32, 2)])
def test_no_more_is_reused_than_may_be(reusable: int, blocks: int) -> None:
    own = pool()
    own.close(filled(own, b"a", 48))
    assert len(own.open(b"a", IDS[:48], 48, reusable).blocks) == blocks


def test_room_is_reserved_and_kept_blocks_give_way_oldest_first() -> None:
    own = pool(capacity=4)
    own.close(filled(own, b"a", 32))
    own.close(filled(own, b"b", 32))
    assert own.cached == 4
    assert own.has_room(64)
    table = own.open(b"c", IDS[:20], 40, 19)
    assert own.has_room(16)
    assert not own.has_room(17)
    own.extend(table, 20)
    own.extend(table, 40)
    assert len(table.blocks) == 3
    assert own.open(b"a", IDS[:32], 32, 31).blocks == []
    own.close(table)
    assert own.has_room(32)


def test_a_sequence_beyond_the_capacity_gets_its_blocks_all_the_same() -> None:
    own = pool(capacity=1)
    table = own.open(b"a", IDS[:40], 40, 39)
    own.extend(table, 40)
    assert len({block.address for block in table.blocks}) == 3


def test_forgetting_frees_what_is_kept() -> None:
    own = pool()
    own.close(filled(own, b"a", 40))
    own.forget()
    assert own.cached == 0
    assert own.open(b"a", IDS[:40], 40, 39).blocks == []
