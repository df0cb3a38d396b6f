"""Attention of one token over its own sequence, whose keys and values are in blocks.

Query heads that share a key head are computed together, so that keys and values are read only once.
"""

from typing import Any

import numpy as np

from onebase.engine.lean import plan as p
from onebase.engine.lean import rowwise as r
from onebase.engine.lean.jit import compiled
from onebase.engine.lean.vector import BLOCK, PAD

_MASKED = np.float32(-3.0e38)  # a score whose exponential is 0


@compiled
def _scores(m: Any, heads: int, query: int, keys: int, out: int, room: int, ahead: int) -> None:
    """The scores of up to 4 query heads for one block."""
    scale, width = np.float32(m.attention_scale), m.head_width
    if heads == 4:
        r.scores_4(query, keys, width, out, room, scale, ahead)
    elif heads == 3:
        r.scores_3(query, keys, width, out, room, scale, ahead)
    elif heads == 2:
        r.scores_2(query, keys, width, out, room, scale, ahead)
    else:
        r.scores_1(query, keys, width, out, room, scale, ahead)


@compiled
def _weigh(
    m: Any, heads: int, weights: int, room: int, values: int, tokens: int, out: int, ahead: int
) -> None:
    """Add a block's values, weighted for up to 4 query heads."""
    width = m.head_width
    if heads == 4:
        r.weigh_4(weights, room, values, tokens, out, width, ahead)
    elif heads == 3:
        r.weigh_3(weights, room, values, tokens, out, width, ahead)
    elif heads == 2:
        r.weigh_2(weights, room, values, tokens, out, width, ahead)
    else:
        r.weigh_1(weights, room, values, tokens, out, width, ahead)


@compiled
def _softmax(
    m: Any, s: Any, heads: int, query: int, layer: int, head: int, sequence: int, low: int, high: int,
    scores: int, room: int, out: int,
) -> None:  # fmt: skip
    """Softmax attention of some query heads that share key head `head`, over the keys from `low` to `high` of
    their sequence. Blocks before `low` are skipped.
    """
    width = m.head_width
    part = 4 * BLOCK * width
    keys = part * (m.kv_heads * 2 * layer + head)
    first, last = s.starts[sequence], s.starts[sequence + 1]
    at, key, start = 0, 0, 0
    begin = first
    for entry in range(first, last):
        tokens = s.entries[entry, 1]
        if key + tokens <= low:
            key += tokens
            begin, start = entry + 1, key
            continue
        if key >= high:
            last = entry
            break
        ahead = s.entries[min(entry + 1, last - 1), 0] + keys
        _scores(m, heads, query, s.entries[entry, 0] + keys, scores + 4 * at, room, ahead)
        if key < low or key + tokens > high or tokens < BLOCK:
            for slot in range(BLOCK):
                if slot >= tokens or key + slot < low or key + slot >= high:
                    for number in range(heads):
                        r.write(scores, number * room + at + slot, _MASKED)
        key += tokens
        at += BLOCK
    filled = (at + PAD - 1) // PAD * PAD
    for number in range(heads):
        head_scores = scores + 4 * number * room
        for slot in range(at, filled):
            r.write(head_scores, slot, _MASKED)
        total = r.exponentials(head_scores, r.maximum(head_scores, filled), filled)
        r.write(out, heads * width + number, np.float32(1.0) / total)
    r.fill(out, heads * width, np.float32(0.0))
    values = keys + part * m.kv_heads
    at = 0
    for entry in range(begin, last):
        # After the last visible token, a block may contain anything, even infinities.
        tokens = min(s.entries[entry, 1], high - start)
        start += s.entries[entry, 1]
        ahead = s.entries[min(entry + 1, last - 1), 0] + values
        _weigh(m, heads, scores + 4 * at, room, s.entries[entry, 0] + values, tokens, out, ahead)
        at += BLOCK
    for number in range(heads):
        inverse = r.read(out, heads * width + number)
        for index in range(m.head):
            r.write(out, number * width + index, r.read(out, number * width + index) * inverse)


@compiled
def attend(m: Any, a: Any, b: Any, s: Any, layer: int, row: int, head: int, scores: int) -> None:
    """Attention of the query heads of one row that share a key head; writes their concatenated outputs."""
    rows = s.rows
    adapter, sequence = rows[row, p.ADAPTER], rows[row, p.SEQUENCE]
    high = rows[row, p.POSITION] + 1
    low = 0 if adapter < 0 else a.masked_prefix[adapter, layer]
    window = m.layers[layer, p.WINDOW]
    if window > 0:
        low = max(low, high - window)
    group = m.heads // m.kv_heads
    out = scores + 16 * b.score_room  # after four heads' scores
    for number in range(head * group, (head + 1) * group, 4):
        heads = min(4, (head + 1) * group - number)
        query = b.query + 4 * (row * m.heads + number) * m.head_width
        _softmax(m, s, heads, query, layer, head, sequence, low, high, scores, b.score_room, out)
        for index in range(heads):
            source = out + 4 * index * m.head_width
            target = b.attended + 4 * (row * m.attended_width + (number + index) * m.head)
            for element in range(m.head):
                r.write(target, element, r.read(source, element))
