"""One step of the lean pass, compiled as one function: some rows of tokens through all layers.

A row is one token of one sequence, in a prompt or at its end. A row's numbers depend on the row itself, its
adapter, and the keys and values of its own sequence; on nothing else, bit for bit.
"""

from typing import Any

import numpy as np

from onebase.engine.lean import plan as p
from onebase.engine.lean import rowwise as r
from onebase.engine.lean.attention import attend
from onebase.engine.lean.jit import compiled, compiled_and_kept
from onebase.engine.lean.matmul import product
from onebase.engine.lean.team import claim, done, wait
from onebase.engine.lean.vector import BLOCK, LANES

_PHASES = 10  # of a layer


@compiled
def _inverse_length(x: int, n: int, width: int, epsilon: float) -> Any:
    """1 / sqrt(mean(x^2) + epsilon) of `n` numbers."""
    mean = r.dot(x, x, width) / np.float32(n)
    return np.float32(1.0) / np.sqrt(mean + np.float32(epsilon))


@compiled
def _enter(m: Any, b: Any, row: int, x: int, width: int, top: int) -> None:
    """Make a row ready for a product: as integers with one scale, where weights are quantized."""
    if m.quantized:
        rounded, scale = b.rounded + 2 * row * width, b.scale + 4 * row
        most = r.largest(x, width)
        if most > np.float32(0.0):
            r.rounded(x, rounded, np.float32(top) / most, width)
            r.write(scale, 0, most / np.float32(top))
        else:
            r.fill(rounded, width // 2, np.float32(0.0))
            r.write(scale, 0, most)  # 0, or NaN, which the logits will show


@compiled
def _change(
    a: Any,
    adapter: int,
    layer: int,
    module: int,
    x: int,
    width: int,
    out: int,
    outputs: int,
    ranks: int,
) -> None:
    """out = out * factors + scale b (a x): what an adapter changes in one module's output for one row."""
    own = a.deltas[adapter, layer, module]
    if own[p.FACTORS] != 0:
        r.multiply(out, own[p.FACTORS], outputs)
    rank = own[p.RANK]
    if rank == 0:
        return
    matrix, scale = own[p.DELTA_A], a.scales[adapter, layer, module]
    whole = rank // 4 * 4
    if a.half:
        for at in range(0, whole, 4):
            r.half_dots_4(x, matrix + 2 * at * width, width, width, ranks + 4 * at, scale)
        for at in range(whole, rank):
            r.half_dots_1(x, matrix + 2 * at * width, width, width, ranks + 4 * at, scale)
        r.half_columns(out, own[p.DELTA_B], ranks, rank, outputs)
    else:
        for at in range(0, whole, 4):
            r.dots_4(x, matrix + 4 * at * width, width, width, ranks + 4 * at, scale)
        for at in range(whole, rank):
            r.dots_1(x, matrix + 4 * at * width, width, width, ranks + 4 * at, scale)
        r.columns(out, own[p.DELTA_B], ranks, rank, outputs)


@compiled
def _join(
    m: Any,
    a: Any,
    b: Any,
    adapter: int,
    layer: int,
    row: int,
    module: int,
    x: int,
    width: int,
    ranks: int,
) -> None:
    """Add what attention (`module` OUT) or the feed-forward (DOWN_PROJ) of a layer computed from `x` to the
    residual stream.
    """
    branch = b.branch + 4 * row * m.hidden_width
    own = m.layers[layer]
    if adapter >= 0:
        _change(a, adapter, layer, module, x, width, branch, m.hidden_width, ranks)
    bias = own[p.BIAS_OUT] if module == p.OUT else own[p.BIAS_DOWN]
    if bias != 0:
        r.add(branch, bias, m.hidden_width)
    norm = own[p.POST_1] if module == p.OUT else own[p.POST_2]
    if norm != 0:
        inverse = _inverse_length(branch, m.hidden, m.hidden_width, m.epsilon)
        r.scaled(branch, norm, inverse, branch, m.hidden_width)
    r.add(b.hidden + 4 * row * m.hidden_width, branch, m.hidden_width)


@compiled
def _norm(
    m: Any, a: Any, b: Any, adapter: int, layer: int, row: int, norm: int, product_: int
) -> None:
    """The residual stream of a row, normed and ready for a product."""
    x, target = b.hidden + 4 * row * m.hidden_width, b.normed + 4 * row * m.hidden_width
    r.scaled(
        x, norm, _inverse_length(x, m.hidden, m.hidden_width, m.epsilon), target, m.hidden_width
    )
    if adapter >= 0 and a.inputs[adapter, layer, product_] != 0:
        r.multiply(target, a.inputs[adapter, layer, product_], m.hidden_width)
    _enter(m, b, row, target, m.hidden_width, m.hidden_top)


@compiled
def _head(m: Any, source: int, target: int, norm: int, cos: Any, sin: Any) -> None:
    """A head of a query or key to `target`: normed where the base norms it, and rotated (Su et al. 2021)."""
    if m.head % LANES == 0:
        r.copy(source, target, m.head)
    else:
        for index in range(m.head):
            r.write(target, index, r.read(source, index))
    if norm != 0:
        inverse = _inverse_length(target, m.head, m.head_width, m.epsilon)
        r.scaled(target, norm, inverse, target, m.head_width)
    half = m.rotary // 2
    if half % LANES == 0 and not m.interleaved:
        r.rotate_halves(target, cos.ctypes.data, sin.ctypes.data, half)
        return
    for index in range(half):
        first = 2 * index if m.interleaved else index
        second = first + 1 if m.interleaved else index + half
        x, y = r.read(target, first), r.read(target, second)
        r.write(target, first, x * cos[index] - y * sin[index])
        r.write(target, second, y * cos[index] + x * sin[index])


@compiled
def _keys_and_values(
    m: Any, a: Any, b: Any, rows: Any, layer: int, row: int, ranks: int, single: int
) -> None:
    """Finish a row's query, key and value: deltas, biases, norms, rotation; key and value to the cache."""
    own, adapter = m.layers[layer], rows[row, p.ADAPTER]
    at, x = b.qkv + 4 * row * m.qkv_width, b.normed + 4 * row * m.hidden_width
    if adapter >= 0:
        queries, keys = m.key_at, m.value_at - m.key_at
        values = m.qkv_width - m.value_at
        _change(a, adapter, layer, p.QUERY, x, m.hidden_width, at, queries, ranks)
        _change(a, adapter, layer, p.KEY, x, m.hidden_width, at + 4 * m.key_at, keys, ranks)
        _change(a, adapter, layer, p.VALUE, x, m.hidden_width, at + 4 * m.value_at, values, ranks)
    if own[p.BIAS_QKV] != 0:
        r.add(at, own[p.BIAS_QKV], m.qkv_width)
    position, table = rows[row, p.POSITION], own[p.ROPE]
    cos, sin = m.ropes[table, 0, position], m.ropes[table, 1, position]
    query = b.query + 4 * row * m.heads * m.head_width
    for head in range(m.heads):
        _head(
            m, at + 4 * head * m.head, query + 4 * head * m.head_width, own[p.QUERY_NORM], cos, sin
        )
    # A block holds [layers, keys and values, heads]: keys as [head_width, BLOCK], values the other way round.
    part = 4 * BLOCK * m.head_width
    cached = rows[row, p.BLOCK_AT] + part * m.kv_heads * 2 * layer
    slot = rows[row, p.SLOT]
    for head in range(m.kv_heads):
        key, value = (
            cached + part * head,
            cached + part * (m.kv_heads + head) + 4 * slot * m.head_width,
        )
        r.fill(single, m.head_width, np.float32(0.0))
        _head(m, at + 4 * (m.key_at + head * m.head), single, own[p.KEY_NORM], cos, sin)
        for index in range(m.head):
            r.write(key, index * BLOCK + slot, r.read(single, index))
        source = at + 4 * (m.value_at + head * m.head)
        for index in range(m.head):
            r.write(value, index, r.read(source, index))


@compiled
def _gate(m: Any, a: Any, b: Any, adapter: int, layer: int, row: int, ranks: int) -> None:
    """The inside of the feed-forward of a row: gate and up to what the down projection reads."""
    at, x = b.gate_up + 8 * row * m.inner_width, b.normed + 4 * row * m.hidden_width
    up = at + 4 * m.inner_width
    if adapter >= 0:
        _change(a, adapter, layer, p.GATE, x, m.hidden_width, at, m.inner_width, ranks)
        _change(a, adapter, layer, p.UP, x, m.hidden_width, up, m.inner_width, ranks)
    bias = m.layers[layer, p.BIAS_GATE_UP]
    if bias != 0:
        r.add(at, bias, 2 * m.inner_width)
    if m.gelu:
        r.gelu_gate(at, up, m.inner_width)
    else:
        r.silu_gate(at, up, m.inner_width)
    if adapter >= 0 and a.inputs[adapter, layer, p.DOWN] != 0:
        r.multiply(at, a.inputs[adapter, layer, p.DOWN], m.inner_width)
    _enter(m, b, row, at, m.inner_width, m.inner_top)


@compiled
def _panels(
    m: Any, b: Any, counters: int, phase: int, panels: Any, count: int, rows: int, x: int, x_stride: int,
    width: int, out: int, out_stride: int,
) -> None:  # fmt: skip
    """A product as a phase: its panels of weights are the pieces."""
    while True:
        piece = claim(counters, phase, count)
        if piece < 0:
            break
        own = panels[piece]
        product(
            m.quantized, rows, b.rounded if m.quantized else x, width if m.quantized else x_stride,
            b.scale, own[p.WEIGHTS], own[p.SCALES], own[p.OUTPUTS], width, out + 4 * own[p.PLACE], out_stride,
        )  # fmt: skip
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _begin_layer(
    m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int, ranks: int
) -> None:
    """A phase, row by row: the last layer's feed-forward joins the residual stream, which is normed."""
    count = len(s.rows)
    while True:
        row = claim(counters, phase, count)
        if row < 0:
            break
        adapter = s.rows[row, p.ADAPTER]
        if layer > 0:
            x = b.gate_up + 8 * row * m.inner_width
            _join(m, a, b, adapter, layer - 1, row, p.DOWN_PROJ, x, m.inner_width, ranks)
        _norm(m, a, b, adapter, layer, row, m.layers[layer, p.NORM_1], p.QKV)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _fill_cache(
    m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int, ranks: int, scores: int
) -> None:
    """A phase, row by row: queries are made ready, keys and values go to the cache."""
    count = len(s.rows)
    while True:
        row = claim(counters, phase, count)
        if row < 0:
            break
        _keys_and_values(m, a, b, s.rows, layer, row, ranks, scores)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _attend_all(
    m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int, scores: int
) -> None:
    """A phase, by rows and key heads."""
    count = len(s.rows) * m.kv_heads
    while True:
        piece = claim(counters, phase, count)
        if piece < 0:
            break
        attend(m, a, b, s, layer, piece // m.kv_heads, piece % m.kv_heads, scores)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _leave_attention(m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int) -> None:
    """A phase, row by row: what was attended to is made ready for its product."""
    count = len(s.rows)
    while True:
        row = claim(counters, phase, count)
        if row < 0:
            break
        adapter, x = s.rows[row, p.ADAPTER], b.attended + 4 * row * m.attended_width
        if adapter >= 0 and a.inputs[adapter, layer, p.OUTPUT] != 0:
            r.multiply(x, a.inputs[adapter, layer, p.OUTPUT], m.attended_width)
        _enter(m, b, row, x, m.attended_width, m.attended_top)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _begin_feed_forward(
    m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int, ranks: int
) -> None:
    """A phase, row by row: attention joins the residual stream, which is normed."""
    count = len(s.rows)
    while True:
        row = claim(counters, phase, count)
        if row < 0:
            break
        adapter, x = s.rows[row, p.ADAPTER], b.attended + 4 * row * m.attended_width
        _join(m, a, b, adapter, layer, row, p.OUT, x, m.attended_width, ranks)
        _norm(m, a, b, adapter, layer, row, m.layers[layer, p.NORM_2], p.GATE_UP)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _gate_all(
    m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, layer: int, ranks: int
) -> None:
    """A phase, row by row: the inside of the feed-forward."""
    count = len(s.rows)
    while True:
        row = claim(counters, phase, count)
        if row < 0:
            break
        _gate(m, a, b, s.rows[row, p.ADAPTER], layer, row, ranks)
        done(counters, phase)
    wait(counters, phase, count)


@compiled
def _begin_head(m: Any, a: Any, b: Any, s: Any, counters: int, phase: int, ranks: int) -> None:
    """A phase, by kept rows: the last layer's feed-forward joins, the final norm."""
    count, last = len(s.keep), len(m.layers) - 1
    while True:
        place = claim(counters, phase, count)
        if place < 0:
            break
        row = s.keep[place]
        x = b.gate_up + 8 * row * m.inner_width
        _join(m, a, b, s.rows[row, p.ADAPTER], last, row, p.DOWN_PROJ, x, m.inner_width, ranks)
        x, target = b.hidden + 4 * row * m.hidden_width, b.normed + 4 * place * m.hidden_width
        inverse = _inverse_length(x, m.hidden, m.hidden_width, m.epsilon)
        r.scaled(x, m.final_norm, inverse, target, m.hidden_width)
        _enter(m, b, place, target, m.hidden_width, m.hidden_top)
        done(counters, phase)
    wait(counters, phase, count)


@compiled_and_kept
def run(thread: int, counters: int, m: Any, a: Any, b: Any, s: Any) -> None:
    """Run the rows of `s` through all layers, and its kept rows through the head into the logits.

    Every thread of a team calls it with the same arguments but for `thread`; `counters` are the team's.
    """
    count, kept = len(s.rows), len(s.keep)
    scores, ranks = b.scores + 4 * thread * b.thread_room, b.ranks + 4 * thread * b.rank_room
    hidden, inner = m.hidden_width, m.inner_width
    phase = 0
    for layer in range(len(m.layers)):
        panels = m.panels[layer]
        _begin_layer(m, a, b, s, counters, phase, layer, ranks)
        _panels(
            m, b, counters, phase + 1, panels[p.QKV], m.counts[p.QKV], count, b.normed, hidden, hidden,
            b.qkv, m.qkv_width,
        )  # fmt: skip
        _fill_cache(m, a, b, s, counters, phase + 2, layer, ranks, scores)
        _attend_all(m, a, b, s, counters, phase + 3, layer, scores)
        _leave_attention(m, a, b, s, counters, phase + 4, layer)
        _panels(
            m, b, counters, phase + 5, panels[p.OUTPUT], m.counts[p.OUTPUT], count, b.attended,
            m.attended_width, m.attended_width, b.branch, hidden,
        )  # fmt: skip
        _begin_feed_forward(m, a, b, s, counters, phase + 6, layer, ranks)
        _panels(
            m, b, counters, phase + 7, panels[p.GATE_UP], m.counts[p.GATE_UP], count, b.normed, hidden,
            hidden, b.gate_up, 2 * inner,
        )  # fmt: skip
        _gate_all(m, a, b, s, counters, phase + 8, layer, ranks)
        _panels(
            m, b, counters, phase + 9, panels[p.DOWN], m.counts[p.DOWN], count, b.gate_up, 2 * inner,
            inner, b.branch, hidden,
        )  # fmt: skip
        phase += _PHASES
    _begin_head(m, a, b, s, counters, phase, ranks)
    _panels(
        m, b, counters, phase + 1, m.head_panels, len(m.head_panels), kept, b.normed, hidden, hidden,
        b.logits, m.vocabulary,
    )  # fmt: skip


def phases(layers: int) -> int:
    """How many phases a step over so many layers has."""
    return _PHASES * layers + 2
