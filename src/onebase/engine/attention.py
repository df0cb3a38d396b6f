"""Attention inside a pack, registered with transformers under the name `onebase`.

transformers computes queries, keys and values of the whole packed row. The attention object of the
pass, which is handed through as a keyword argument, decides which tokens attend to which.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from onebase.engine.pack import Pack

ATTENTION = "onebase"
# Queries per block. Shorter blocks skip more masked keys, but need more calls.
_BLOCK = 256
# The fixed cost of a group of blocks, in query-key pairs.
_GROUP_COST = {"cpu": 1 << 15, "cuda": 1 << 22}


class Attention(Protocol):
    """Decides which tokens attend to which in one pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: "Rule") -> Tensor:
        """Compute attention in decoder layer `layer`.

        `query` is [heads, tokens, head_dim], `key` and `value` [kv_heads, tokens, head_dim];
        returns [tokens, heads, head_dim].
        """


class Rule:
    """The attention parameters of a layer: scale, sliding window, soft cap of the scores."""

    def __init__(self, scale: float | None, window: int | None, softcap: float | None) -> None:
        self.scale = scale
        self.window = window
        self.softcap = softcap

    def apply(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention; `mask` is additive. All [batch, kv_heads, tokens, head_dim]."""
        if self.softcap is None:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        scale = self.scale if self.scale is not None else query.shape[-1] ** -0.5
        scores = (query @ key.transpose(-1, -2)) * scale
        scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


class PackedAttention:
    """Attention in a pack: each node is split into blocks of queries with the keys they attend to.

    The keys of a node are those of its adapter's prefix, of its ancestors, and its own; keys after
    a block's last query are left out. Blocks of similar size are batched, padded to the largest.
    """

    def __init__(self, pack: Pack, device: torch.device) -> None:
        offsets, self._prefixes = _prefix_rows(pack)
        blocks = [
            block for index in range(len(pack.nodes)) for block in _blocks(pack, index, offsets)
        ]
        self._batches, query_rows = [], []
        for members in _similar_groups([(len(b.queries), len(b.keys)) for b in blocks], device):
            group = [blocks[index] for index in members]
            self._batches.append(_BlockBatch(group, device))
            query_rows += [block.queries for block in group]
        self._output_index = torch.argsort(torch.cat(query_rows)).to(device)
        self.captured: dict[int, tuple[Tensor, Tensor]] | None = None

    def capture(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Record every layer's keys and values in this pass, [tokens, kv_heads, head_dim]."""
        self.captured = {}
        return self.captured

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """As Attention.attend."""
        queries, keys, values = (part.transpose(0, 1) for part in (query, key, value))
        if self.captured is not None:
            self.captured[layer] = (keys, values)
        if self._prefixes:
            keys = torch.cat([keys, *(k[layer].to(keys.dtype) for k, _ in self._prefixes)])
            values = torch.cat([values, *(v[layer].to(keys.dtype) for _, v in self._prefixes)])
        out = [batch.attend(layer, queries, keys, values, rule) for batch in self._batches]
        return torch.cat(out).index_select(0, self._output_index)


@dataclass(frozen=True)
class _Block:
    """Some tokens of a node. `queries` are their rows in the pack, the first at `position` of its
    text; `keys` are the rows that they may attend to, at positions from 0. `masked_prefix` is as
    in Contribution: how many of the first keys each layer masks.
    """

    queries: Tensor
    position: int
    keys: Tensor
    masked_prefix: tuple[int, ...]


def _blocks(pack: Pack, index: int, offsets: Mapping[str, tuple[int, int]]) -> Iterator[_Block]:
    """The tokens of a node in blocks of about _BLOCK queries."""
    node = pack.nodes[index]
    keys = _key_rows(pack, index, offsets)
    masked_prefix = () if node.adapter is None else pack.contributions[node.adapter].masked_prefix
    parts = max(1, round(node.length / _BLOCK))
    cuts = [node.length * part // parts for part in range(parts + 1)]
    for begin, end in pairwise(cuts):
        queries = torch.arange(node.start + begin, node.start + end)
        yield _Block(queries, node.position + begin, keys[: node.position + end], masked_prefix)


def _similar_groups(sizes: Sequence[tuple[int, int]], device: torch.device) -> list[list[int]]:
    """Indices of blocks of `sizes` (queries, keys), in groups that waste little on padding.

    Sorts the blocks by size and finds the cheapest partition into consecutive groups. The cost of
    a group is that of its padded products plus a constant.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    fixed_cost = _GROUP_COST.get(device.type, _GROUP_COST["cuda"])
    # For the first blocks up to each one: the lowest cost, and where its last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        cheapest, keys = None, 0
        for begin in range(end - 1, -1, -1):
            keys = max(keys, sizes[order[begin]][1])
            cost = best[begin][0] + fixed_cost + (end - begin) * sizes[order[begin]][0] * keys
            if cheapest is None or cost < cheapest[0]:
                cheapest = (cost, begin)
        assert cheapest is not None
        best.append(cheapest)
    groups, end = [], len(order)
    while end:
        begin = best[end][1]
        groups.append(order[begin:end])
        end = begin
    return groups[::-1]


class _BlockBatch:
    """Batched blocks of queries, padded to the longest.

    Grouped-query heads are folded into the query's token dimension, so keys are never repeated. A
    prefix is among the keys of all layers; layers that do not attend to it mask it.
    """

    def __init__(self, blocks: Sequence[_Block], device: torch.device) -> None:
        self._masked_prefixes = [block.masked_prefix for block in blocks]
        self._rows = len(blocks)
        self._query_length = max(len(block.queries) for block in blocks)
        self._key_length = max(len(block.keys) for block in blocks)
        queries = [(block.queries, block.position) for block in blocks]
        keys = [(block.keys, 0) for block in blocks]
        self._query_index, query_position = _padded(queries, self._query_length, 1 << 30, device)
        self._key_index, key_position = _padded(keys, self._key_length, (1 << 30) + 1, device)
        self._distance = query_position[:, :, None] - key_position[:, None, :]
        self._unpadded: Tensor | None = None
        if any(len(block.queries) < self._query_length for block in blocks):
            padded = torch.arange(self._rows * self._query_length).view(self._rows, -1)
            unpadded = [padded[row, : len(block.queries)] for row, block in enumerate(blocks)]
            self._unpadded = torch.cat(unpadded).to(device)
        self._masks: dict[tuple[tuple[int, ...], int | None, int, torch.dtype], Tensor] = {}

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, rule: Rule
    ) -> Tensor:
        """The outputs for the blocks' queries, block after block, [queries, heads, head_dim].
        `queries` [tokens, heads, head_dim], `keys` and `values` [rows, kv_heads, head_dim] are
        those of the whole pack.
        """
        heads, head_dim = queries.shape[1:]
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        n, lq, lk = self._rows, self._query_length, self._key_length
        q = queries.index_select(0, self._query_index)
        q = q.view(n, lq, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        k = keys.index_select(0, self._key_index).view(n, lk, kv_heads, head_dim).transpose(1, 2)
        v = values.index_select(0, self._key_index).view(n, lk, kv_heads, head_dim).transpose(1, 2)
        masked_prefix = masked_keys_in(layer, self._masked_prefixes)
        mask = self._mask(masked_prefix, rule.window, group, queries.dtype)
        out = rule.apply(q.reshape(n, kv_heads, group * lq, head_dim), k, v, mask)
        out = out.view(n, kv_heads, group, lq, head_dim).permute(0, 3, 1, 2, 4)
        out = out.reshape(n * lq, heads, head_dim)
        return out if self._unpadded is None else out.index_select(0, self._unpadded)

    def _mask(
        self, masked_prefix: tuple[int, ...], window: int | None, group: int, dtype: torch.dtype
    ) -> Tensor:
        """Zero where a query attends to a key, minus infinity elsewhere, [blocks, 1, group * Lq, Lk]."""
        key = (masked_prefix, window, group, dtype)
        if key not in self._masks:
            visible = self._distance >= 0
            if masked_prefix:
                unmasked = after_masked_keys(masked_prefix, self._key_length, visible.device)
                visible = visible & unmasked[:, None]
            if window is not None:
                padding = self._distance > 1 << 28  # padded queries may attend to anything
                visible = visible & ((self._distance < window) | padding)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            mask = mask.masked_fill(~visible, float("-inf"))
            self._masks[key] = mask[:, None].repeat(1, 1, group, 1)
        return self._masks[key]


def masked_keys_in(layer: int, rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """How many of its first keys each row masks in `layer`. `rows` has a row's counts for all layers
    (Contribution's `masked_prefix`). Empty if no row masks any.
    """
    counts = tuple(masked_prefix[layer] if masked_prefix else 0 for masked_prefix in rows)
    return counts if any(counts) else ()


def after_masked_keys(masked_prefix: Sequence[int], keys: int, device: torch.device) -> Tensor:
    """Whether a key comes after its row's masked ones, [rows, keys]."""
    first_visible = torch.tensor(masked_prefix, device=device)
    return torch.arange(keys, device=device)[None] >= first_visible[:, None]


def _prefix_rows(pack: Pack) -> tuple[dict[str, tuple[int, int]], list[tuple[Tensor, Tensor]]]:
    """The (start row, tokens) of each adapter's KV prefix, which follow the pack's own rows; and the
    prefixes as (keys, values), each [layers, tokens, kv_heads, head_dim].
    """
    offsets: dict[str, tuple[int, int]] = {}
    prefixes = []
    start = len(pack.ids)
    for name in pack.adapters:
        prefix = pack.contributions[name].prefix
        if prefix is not None:
            tokens = prefix[0].shape[2]
            offsets[name] = (start, tokens)
            start += tokens
            prefixes.append((prefix[0].transpose(1, 2), prefix[1].transpose(1, 2)))
    return offsets, prefixes


def _key_rows(pack: Pack, index: int, offsets: Mapping[str, tuple[int, int]]) -> Tensor:
    """The rows that a node's tokens may attend to; their positions are consecutive from 0."""
    adapter = pack.nodes[index].adapter
    pieces = []
    if adapter is not None and adapter in offsets:
        start, tokens = offsets[adapter]
        pieces.append(torch.arange(start, start + tokens))
    for ancestor in pack.path(index):
        node = pack.nodes[ancestor]
        pieces.append(torch.arange(node.start, node.start + node.length))
    return torch.cat(pieces)


def _padded(
    rows: list[tuple[Tensor, int]], length: int, filler: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row indices, flat [rows * length], and positions [rows, length]. Padding has row 0 and
    position `filler`.
    """
    index = torch.zeros(len(rows), length, dtype=torch.long)
    position = torch.full((len(rows), length), filler, dtype=torch.long)
    for row, (values, start) in enumerate(rows):
        index[row, : len(values)] = values
        position[row, : len(values)] = torch.arange(start, start + len(values))
    return index.flatten().to(device), position.to(device)


def attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    onebase_pass: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [batch, heads, tokens, head_dim] in, [batch, tokens,
    heads, head_dim] out. Without a pass, it is plain causal attention.
    """
    rule = Rule(scaling, sliding_window, softcap)
    if onebase_pass is None:
        return _plain(query, key, value, rule), None
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = onebase_pass.attention.attend(layer, query[0], key[0], value[0], rule)
    return out[None], None


def _plain(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    queries, keys = query.shape[2], key.shape[2]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    visible = distance >= 0
    if rule.window is not None:
        visible = visible & (distance < rule.window)
    mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(~visible, float("-inf"))
    return rule.apply(query, key, value, mask.to(query.device)).transpose(1, 2).contiguous()
