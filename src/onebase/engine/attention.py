"""Attention inside a pack, registered with transformers under the name `onebase`.

transformers computes queries, keys and values of the whole packed row; the pass's attention
object, which rides along as a keyword argument, says who attends to whom.
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
# Queries in one block: shorter ones leave out more keys that are not seen, and are more calls.
_BLOCK = 256
# What a group of blocks costs beside its products, in query-key pairs.
_GROUP_COST = {"cpu": 1 << 15, "cuda": 1 << 22}


class Attention(Protocol):
    """Who attends to whom in one pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: "Rule") -> Tensor:
        """Attend in decoder layer `layer`.

        `query` is [heads, tokens, head_dim], `key` and `value` [kv_heads, tokens, head_dim];
        returns [tokens, heads, head_dim].
        """


class Rule:
    """What a layer asks of its attention: scale, sliding window, soft cap of the scores."""

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
    """Attention in a pack: its nodes in blocks of queries, each with the keys that it may see.

    Keys of a node are its adapter's prefix, its ancestors' and its own; those after a block's last
    query are left out. Blocks of about one size are computed side by side, padded to the largest.
    """

    def __init__(self, pack: Pack, device: torch.device) -> None:
        offsets, self._prefixes = _prefix_rows(pack)
        blocks = [
            block for index in range(len(pack.nodes)) for block in _blocks(pack, index, offsets)
        ]
        self._batches, order = [], []
        for members in _alike([(len(b.queries), len(b.keys)) for b in blocks], device):
            own = [blocks[index] for index in members]
            self._batches.append(_BlockBatch(own, device))
            order += [block.queries for block in own]
        self._output_index = torch.argsort(torch.cat(order)).to(device)
        self.captured: dict[int, tuple[Tensor, Tensor]] | None = None

    def capture(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keep every layer's keys and values of this pass, [tokens, kv_heads, head_dim]."""
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
    """Some tokens of a node: their rows in the pack, `queries`, the first at `position` of its
    text; the rows of what they may attend to, `keys`, at positions from 0; and how many of these
    each layer does not see (as Contribution's `masked_prefix`).
    """

    queries: Tensor
    position: int
    keys: Tensor
    masked_prefix: tuple[int, ...]


def _blocks(pack: Pack, index: int, offsets: Mapping[str, tuple[int, int]]) -> Iterator[_Block]:
    """The tokens of a node in blocks of about _BLOCK."""
    node = pack.nodes[index]
    keys = _key_rows(pack, index, offsets)
    masked_prefix = () if node.adapter is None else pack.contributions[node.adapter].masked_prefix
    parts = max(1, round(node.length / _BLOCK))
    cuts = [node.length * part // parts for part in range(parts + 1)]
    for begin, end in pairwise(cuts):
        queries = torch.arange(node.start + begin, node.start + end)
        yield _Block(queries, node.position + begin, keys[: node.position + end], masked_prefix)


def _alike(sizes: Sequence[tuple[int, int]], device: torch.device) -> list[list[int]]:
    """Indices of blocks of `sizes` (queries, keys), in groups that waste little on padding.

    The cheapest way to cut the blocks, in the order of their sizes, where a group costs what its
    padded products do and a constant.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    alone = _GROUP_COST.get(device.type, _GROUP_COST["cuda"])
    best: list[tuple[int, int]] = [(0, 0)]  # up to each block: the cost, where its group begins
    for end in range(1, len(order) + 1):
        found, keys = None, 0
        for begin in range(end - 1, -1, -1):
            keys = max(keys, sizes[order[begin]][1])
            cost = best[begin][0] + alone + (end - begin) * sizes[order[begin]][0] * keys
            if found is None or cost < found[0]:
                found = (cost, begin)
        assert found is not None
        best.append(found)
    groups, end = [], len(order)
    while end:
        begin = best[end][1]
        groups.append(order[begin:end])
        end = begin
    return groups[::-1]


class _BlockBatch:
    """Blocks of queries side by side, padded to the longest.

    Grouped-query heads are folded into the query's token dimension, so keys are never repeated. A
    prefix is among the keys in layers that don't see it, too, and masked there.
    """

    def __init__(self, blocks: Sequence[_Block], device: torch.device) -> None:
        self._unseen = [block.masked_prefix for block in blocks]
        self._rows = len(blocks)
        self._query_length = max(len(block.queries) for block in blocks)
        self._key_length = max(len(block.keys) for block in blocks)
        queries = [(block.queries, block.position) for block in blocks]
        keys = [(block.keys, 0) for block in blocks]
        self._query_index, query_position = _padded(queries, self._query_length, 1 << 30, device)
        self._key_index, key_position = _padded(keys, self._key_length, (1 << 30) + 1, device)
        self._distance = query_position[:, :, None] - key_position[:, None, :]
        self._own: Tensor | None = None
        if any(len(block.queries) < self._query_length for block in blocks):
            spots = torch.arange(self._rows * self._query_length).view(self._rows, -1)
            own = [spots[row, : len(block.queries)] for row, block in enumerate(blocks)]
            self._own = torch.cat(own).to(device)
        self._masks: dict[tuple[tuple[int, ...], int | None, int, torch.dtype], Tensor] = {}

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, rule: Rule
    ) -> Tensor:
        """What the blocks' own queries get, block after block, [queries, heads, head_dim]. Given
        are the whole pack's, [tokens, heads, head_dim] and [rows, kv_heads, head_dim].
        """
        heads, head_dim = queries.shape[1:]
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        n, lq, lk = self._rows, self._query_length, self._key_length
        q = queries.index_select(0, self._query_index)
        q = q.view(n, lq, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        k = keys.index_select(0, self._key_index).view(n, lk, kv_heads, head_dim).transpose(1, 2)
        v = values.index_select(0, self._key_index).view(n, lk, kv_heads, head_dim).transpose(1, 2)
        mask = self._mask(unseen_in(layer, self._unseen), rule.window, group, queries.dtype)
        out = rule.apply(q.reshape(n, kv_heads, group * lq, head_dim), k, v, mask)
        out = out.view(n, kv_heads, group, lq, head_dim).permute(0, 3, 1, 2, 4)
        out = out.reshape(n * lq, heads, head_dim)
        return out if self._own is None else out.index_select(0, self._own)

    def _mask(
        self, masked_prefix: tuple[int, ...], window: int | None, group: int, dtype: torch.dtype
    ) -> Tensor:
        """Zero where a query sees a key, minus infinity elsewhere, [blocks, 1, group * Lq, Lk]."""
        wanted = (masked_prefix, window, group, dtype)
        if wanted not in self._masks:
            seen = self._distance >= 0
            if masked_prefix:
                seen = seen & behind(masked_prefix, self._key_length, seen.device)[:, None]
            if window is not None:
                padding = self._distance > 1 << 28  # a padded query may see anything
                seen = seen & ((self._distance < window) | padding)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask = mask.masked_fill(~seen, float("-inf"))
            self._masks[wanted] = mask[:, None].repeat(1, 1, group, 1)
        return self._masks[wanted]


def unseen_in(layer: int, rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """How many of its first keys each row does not attend to in `layer`, of what it has for every
    layer (as Contribution's `masked_prefix`); empty where each attends to all of its own.
    """
    counts = tuple(masked_prefix[layer] if masked_prefix else 0 for masked_prefix in rows)
    return counts if any(counts) else ()


def behind(masked_prefix: Sequence[int], keys: int, device: torch.device) -> Tensor:
    """Whether a key of a row comes after those that the row does not attend to, [rows, keys]."""
    first = torch.tensor(masked_prefix, device=device)
    return torch.arange(keys, device=device)[None] >= first[:, None]


def _prefix_rows(pack: Pack) -> tuple[dict[str, tuple[int, int]], list[tuple[Tensor, Tensor]]]:
    """Where each adapter's KV prefix stands behind the pack's own rows, and the prefixes as
    (keys, values), each [layers, tokens, kv_heads, head_dim].
    """
    offsets: dict[str, tuple[int, int]] = {}
    prefixes = []
    at = len(pack.ids)
    for name in pack.adapters:
        prefix = pack.contributions[name].prefix
        if prefix is not None:
            tokens = prefix[0].shape[2]
            offsets[name] = (at, tokens)
            at += tokens
            prefixes.append((prefix[0].transpose(1, 2), prefix[1].transpose(1, 2)))
    return offsets, prefixes


def _key_rows(pack: Pack, index: int, offsets: Mapping[str, tuple[int, int]]) -> Tensor:
    """The rows a node's tokens may attend to; their positions are consecutive from 0."""
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
    """Row indices, flat [rows * length], and positions [rows, length]; padding has row 0 and
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
    heads, head_dim] out. Without a pass it is plain causal attention.
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
    ago = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    seen = ago >= 0 if rule.window is None else (ago >= 0) & (ago < rule.window)
    mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill(~seen, float("-inf"))
    return rule.apply(query, key, value, mask.to(query.device)).transpose(1, 2).contiguous()
