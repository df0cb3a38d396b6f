"""The KV cache of the generic pass, held against concatenation."""

from collections.abc import Callable

import torch

from onebase.engine.attention import Rule
from onebase.engine.kv_cache import KVCache
from onebase.model.base import Base


def test_a_cache_keeps_each_sequence_through_release_and_growth(
    make_base: Callable[..., Base],
) -> None:
    shape = make_base().shape
    cache = KVCache(shape, 40, torch.device("cpu"), torch.float32)
    assert cache._keys.numel() == 0  # no room before there is a sequence
    drawn = torch.Generator().manual_seed(0)

    def keys_of(tokens: int) -> torch.Tensor:
        size = (shape.layers, shape.kv_heads, tokens, shape.head_dim)
        return torch.randn(size, generator=drawn)

    kept = [keys_of(5), keys_of(9), keys_of(3)]
    masked_prefix = [(), (), (0, 0, 2)]  # two keys of the third's are not seen in the last layer
    for keys, hidden in zip(kept, masked_prefix, strict=True):
        cache.admit(keys, -keys, hidden)
    assert (cache.used, cache.lengths) == (3, [5, 9, 3])

    def check() -> None:
        assert cache.lengths == [keys.shape[2] for keys in kept]
        for slot, keys in enumerate(kept):
            assert torch.equal(cache._keys[:, slot, :, : keys.shape[2]], keys)
            assert torch.equal(cache._values[:, slot, :, : keys.shape[2]], -keys)

    check()
    cache.release(0)  # the last one moves into its place
    kept = [kept[2], kept[1]]
    check()
    cache.release(1)  # the last itself
    kept = kept[:1]
    check()
    kept.append(keys_of(200))  # beyond the capacity
    cache.admit(kept[1], -kept[1])
    check()
    assert cache._keys.shape[3] >= 201
    kept.append(keys_of(4))
    cache.admit(kept[2], -kept[2], (0, 3, 1))
    masked_prefix = [(0, 0, 2), (), (0, 3, 1)]
    rule = Rule(None, None, None)
    for _ in range(300):  # over the edge once more
        step = cache.step()
        new = torch.randn(shape.kv_heads, 3, shape.head_dim, generator=drawn)
        query = torch.randn(shape.heads, 3, shape.head_dim, generator=drawn)
        for layer in range(shape.layers):
            seen = step.attend(layer, query, new, -new, rule)
        added = new.transpose(0, 1)[:, None, :, None].expand(-1, shape.layers, -1, -1, -1)
        kept = [torch.cat([keys, own], 2) for keys, own in zip(kept, added, strict=True)]
    check()
    for _ in range(3):
        kept.append(keys_of(2))
        masked_prefix.append(())
        cache.admit(kept[-1], -kept[-1])
    check()
    assert cache._keys.shape[1] == 8  # rows double
    for slot, keys in enumerate(kept[:3]):
        first = masked_prefix[slot][-1] if masked_prefix[slot] else 0
        own = keys[-1, :, first:].repeat_interleave(shape.heads // shape.kv_heads, 0)
        scores = (query[:, slot, None] @ own.transpose(1, 2)) * shape.head_dim**-0.5
        by_hand = (scores.softmax(-1) @ -own)[:, 0]
        torch.testing.assert_close(seen[slot], by_hand, atol=1e-5, rtol=0)


def test_an_empty_cache_holds_no_memory(make_base: Callable[..., Base]) -> None:
    shape = make_base().shape
    cache = KVCache(shape, 4, torch.device("cpu"), torch.float32)
    keys = torch.randn(shape.layers, shape.kv_heads, 100, shape.head_dim)
    for _ in range(2):
        cache.admit(keys, keys)
    assert cache.capacity >= 2 * 101
    assert cache.bytes == 2 * cache._keys.nbytes > 0
    for _ in range(2):
        cache.release(0)
    assert (cache.capacity, cache.bytes) == (0, 0)
