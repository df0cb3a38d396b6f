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
def _softmax(
    m: Any, s: Any, heads: int, query: int, layer: int, head: int, sequence: int, low: int, high: int,
    scores: int, room: int, out: int,
) -> None:  # fmt: skip
    """Softmax attention of some query heads that share key head `head`, over the keys from `low` to `high` of
    their sequence. Blocks before `low` are skipped.
    """
    scale, width = np.float32(m.attention_scale), m.head_width
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
        block = s.entries[entry, 0] + keys
        r.scores(heads, query, block, width, scores + 4 * at, room, scale, ahead)
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
        block = s.entries[entry, 0] + values
        r.weigh(heads, scores + 4 * at, room, block, tokens, out, width, ahead)
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
