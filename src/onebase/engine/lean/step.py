"""One step of the lean runner, compiled as one function: rows of tokens through all layers.

A row is one token of one sequence, of its prompt or of its answer. A row's numbers depend only on the row
itself, its adapter, and the keys and values of its own sequence, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from onebase.engine.lean import plan as p
from onebase.engine.lean import rowwise as r
from onebase.engine.lean.attention import attend
from onebase.engine.lean.jit import compiled, compiled_and_cached
from onebase.engine.lean.matmul import product
from onebase.engine.lean.team import claim, done, wait
from onebase.engine.lean.vector import BLOCK, LANES

_PHASES = 10  # per layer


@compiled
def _inverse_length(x: int, n: int, width: int, epsilon: float) -> Any:
    """1 / sqrt(mean(x^2) + epsilon) of `n` numbers."""
    mean = r.dot(x, x, width) / np.float32(n)
    return np.float32(1.0) / np.sqrt(mean + np.float32(epsilon))


@compiled
def _quantize(m: Any, b: Any, row: int, x: int, width: int, top: int) -> None:
    """Prepare a row for a product: if weights are quantized, round it to integers with one scale."""
    if m.quantized:
        rounded, scale = b.rounded + 2 * row * width, b.scale + 4 * row
        largest = r.largest(x, width)
        if largest > np.float32(0.0):
            r.rounded(x, rounded, np.float32(top) / largest, width)
            r.write(scale, 0, largest / np.float32(top))
        else:
            r.fill(rounded, width // 2, np.float32(0.0))
            r.write(scale, 0, largest)  # 0, or NaN, which reaches the logits


@compiled
def _apply_delta(
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
    """out = out * factors + scale b (a x): the adapter's change of one module's output for one row."""
    delta = a.deltas[adapter, layer, module]
    if delta[p.FACTORS] != 0:
        r.multiply(out, delta[p.FACTORS], outputs)
    rank = delta[p.RANK]
    if rank == 0:
        return
    matrix, scale = delta[p.DELTA_A], a.scales[adapter, layer, module]
    whole = rank // 4 * 4
    if a.half:
        for at in range(0, whole, 4):
            r.half_dots_4(x, matrix + 2 * at * width, width, width, ranks + 4 * at, scale)
        for at in range(whole, rank):
            r.half_dots_1(x, matrix + 2 * at * width, width, width, ranks + 4 * at, scale)
        r.half_columns(out, delta[p.DELTA_B], ranks, rank, outputs)
    else:
        for at in range(0, whole, 4):
            r.dots_4(x, matrix + 4 * at * width, width, width, ranks + 4 * at, scale)
        for at in range(whole, rank):
            r.dots_1(x, matrix + 4 * at * width, width, width, ranks + 4 * at, scale)
        r.columns(out, delta[p.DELTA_B], ranks, rank, outputs)


@compiled
def _add_to_residual(
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
    """Add the output of a layer's attention (`module` OUT) or feed-forward (DOWN_PROJ) to the residual
    stream; `x` is the input of that module.
    """
    branch = b.branch + 4 * row * m.hidden_width
    columns = m.layers[layer]
    if adapter >= 0:
        _apply_delta(a, adapter, layer, module, x, width, branch, m.hidden_width, ranks)
    bias = columns[p.BIAS_OUT] if module == p.OUT else columns[p.BIAS_DOWN]
    if bias != 0:
        r.add(branch, bias, m.hidden_width)
    norm = columns[p.POST_1] if module == p.OUT else columns[p.POST_2]
    if norm != 0:
        inverse = _inverse_length(branch, m.hidden, m.hidden_width, m.epsilon)
        r.scaled(branch, norm, inverse, branch, m.hidden_width)
    r.add(b.hidden + 4 * row * m.hidden_width, branch, m.hidden_width)


@compiled
def _norm(
    m: Any, a: Any, b: Any, adapter: int, layer: int, row: int, norm: int, product_: int
) -> None:
    """Norm the residual stream of a row and prepare it for a product."""
    x, target = b.hidden + 4 * row * m.hidden_width, b.normed + 4 * row * m.hidden_width
    r.scaled(
        x, norm, _inverse_length(x, m.hidden, m.hidden_width, m.epsilon), target, m.hidden_width
    )
    if adapter >= 0 and a.inputs[adapter, layer, product_] != 0:
        r.multiply(target, a.inputs[adapter, layer, product_], m.hidden_width)
    _quantize(m, b, row, target, m.hidden_width, m.hidden_top)


@compiled
def _head(m: Any, source: int, target: int, norm: int, cos: Any, sin: Any) -> None:
    """Write a head of a query or key to `target`: normed, if the base does so, and rotated (Su et al. 2021)."""
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


def _phase(work: Callable[..., Any]) -> Any:
    """A phase of a step in `count` pieces, each of them computed by the compiled function `work`."""

    @compiled
    def phase(m, a, b, s, counters, number, count, layer, ranks, scores):  # type: ignore[no-untyped-def]
        while True:
            piece = claim(counters, number, count)
            if piece < 0:
                break
            work(m, a, b, s, layer, piece, ranks, scores)
            done(counters, number)
        wait(counters, number, count)

    return phase


@_phase
@compiled
def _fill_cache(
    m: Any, a: Any, b: Any, s: Any, layer: int, row: int, ranks: int, scores: int
) -> None:
    """Finish a row's query, key and value: deltas, biases, norms, rotation. Writes key and value to the KV
    cache; `scores` is a buffer for one head.
    """
    rows = s.rows
    columns, adapter = m.layers[layer], rows[row, p.ADAPTER]
    qkv, x = b.qkv + 4 * row * m.qkv_width, b.normed + 4 * row * m.hidden_width
    if adapter >= 0:
        queries, keys = m.key_at, m.value_at - m.key_at
        values = m.qkv_width - m.value_at
        key_out, value_out = qkv + 4 * m.key_at, qkv + 4 * m.value_at
        _apply_delta(a, adapter, layer, p.QUERY, x, m.hidden_width, qkv, queries, ranks)
        _apply_delta(a, adapter, layer, p.KEY, x, m.hidden_width, key_out, keys, ranks)
        _apply_delta(a, adapter, layer, p.VALUE, x, m.hidden_width, value_out, values, ranks)
    if columns[p.BIAS_QKV] != 0:
        r.add(qkv, columns[p.BIAS_QKV], m.qkv_width)
    position, table = rows[row, p.POSITION], columns[p.ROPE]
    cos, sin = m.ropes[table, 0, position], m.ropes[table, 1, position]
    query = b.query + 4 * row * m.heads * m.head_width
    for head in range(m.heads):
        target = query + 4 * head * m.head_width
        _head(m, qkv + 4 * head * m.head, target, columns[p.QUERY_NORM], cos, sin)
    # A block is [layers, keys and values, heads]: a head's keys are [head_width, BLOCK], its values
    # [BLOCK, head_width].
    part = 4 * BLOCK * m.head_width
    cached = rows[row, p.BLOCK_AT] + part * m.kv_heads * 2 * layer
    slot = rows[row, p.SLOT]
    for head in range(m.kv_heads):
        key, value = (
            cached + part * head,
            cached + part * (m.kv_heads + head) + 4 * slot * m.head_width,
        )
        r.fill(scores, m.head_width, np.float32(0.0))
        _head(m, qkv + 4 * (m.key_at + head * m.head), scores, columns[p.KEY_NORM], cos, sin)
        for index in range(m.head):
            r.write(key, index * BLOCK + slot, r.read(scores, index))
        source = qkv + 4 * (m.value_at + head * m.head)
        for index in range(m.head):
            r.write(value, index, r.read(source, index))


@_phase
@compiled
def _gate(m: Any, a: Any, b: Any, s: Any, layer: int, row: int, ranks: int, scores: int) -> None:
    """The activations of the feed-forward of a row: gate and up become the input of the down projection."""
    adapter = s.rows[row, p.ADAPTER]
    gate, x = b.gate_up + 8 * row * m.inner_width, b.normed + 4 * row * m.hidden_width
    up = gate + 4 * m.inner_width
    if adapter >= 0:
        _apply_delta(a, adapter, layer, p.GATE, x, m.hidden_width, gate, m.inner_width, ranks)
        _apply_delta(a, adapter, layer, p.UP, x, m.hidden_width, up, m.inner_width, ranks)
    bias = m.layers[layer, p.BIAS_GATE_UP]
    if bias != 0:
        r.add(gate, bias, 2 * m.inner_width)
    if m.gelu:
        r.gelu_gate(gate, up, m.inner_width)
    else:
        r.silu_gate(gate, up, m.inner_width)
    if adapter >= 0 and a.inputs[adapter, layer, p.DOWN] != 0:
        r.multiply(gate, a.inputs[adapter, layer, p.DOWN], m.inner_width)
    _quantize(m, b, row, gate, m.inner_width, m.inner_top)


@_phase
@compiled
def _attention_norm(
    m: Any, a: Any, b: Any, s: Any, layer: int, row: int, ranks: int, scores: int
) -> None:
    """Add the previous layer's feed-forward to the residual stream of a row, and norm it."""
    adapter = s.rows[row, p.ADAPTER]
    if layer > 0:
        x = b.gate_up + 8 * row * m.inner_width
        _add_to_residual(m, a, b, adapter, layer - 1, row, p.DOWN_PROJ, x, m.inner_width, ranks)
    _norm(m, a, b, adapter, layer, row, m.layers[layer, p.NORM_1], p.QKV)


@_phase
@compiled
def _attend_all(
    m: Any, a: Any, b: Any, s: Any, layer: int, piece: int, ranks: int, scores: int
) -> None:
    """Attention of a row and a key head."""
    attend(m, a, b, s, layer, piece // m.kv_heads, piece % m.kv_heads, scores)


@_phase
@compiled
def _quantize_attended(
    m: Any, a: Any, b: Any, s: Any, layer: int, row: int, ranks: int, scores: int
) -> None:
    """Prepare the attention's output of a row for its product."""
    adapter, x = s.rows[row, p.ADAPTER], b.attended + 4 * row * m.attended_width
    if adapter >= 0 and a.inputs[adapter, layer, p.OUTPUT] != 0:
        r.multiply(x, a.inputs[adapter, layer, p.OUTPUT], m.attended_width)
    _quantize(m, b, row, x, m.attended_width, m.attended_top)


@_phase
@compiled
def _feed_forward_norm(
    m: Any, a: Any, b: Any, s: Any, layer: int, row: int, ranks: int, scores: int
) -> None:
    """Add the attention's output to the residual stream of a row, and norm it."""
    adapter, x = s.rows[row, p.ADAPTER], b.attended + 4 * row * m.attended_width
    _add_to_residual(m, a, b, adapter, layer, row, p.OUT, x, m.attended_width, ranks)
    _norm(m, a, b, adapter, layer, row, m.layers[layer, p.NORM_2], p.GATE_UP)


@_phase
@compiled
def _final_norm(
    m: Any, a: Any, b: Any, s: Any, layer: int, index: int, ranks: int, scores: int
) -> None:
    """Add the last layer's feed-forward to the residual stream of a kept row, and apply the final norm."""
    row = s.keep[index]
    adapter, x = s.rows[row, p.ADAPTER], b.gate_up + 8 * row * m.inner_width
    _add_to_residual(m, a, b, adapter, layer, row, p.DOWN_PROJ, x, m.inner_width, ranks)
    x, target = b.hidden + 4 * row * m.hidden_width, b.normed + 4 * index * m.hidden_width
    inverse = _inverse_length(x, m.hidden, m.hidden_width, m.epsilon)
    r.scaled(x, m.final_norm, inverse, target, m.hidden_width)
    _quantize(m, b, index, target, m.hidden_width, m.hidden_top)


@compiled
def _panels(
    m: Any, b: Any, counters: int, phase: int, panels: Any, count: int, rows: int, x: int, x_stride: int,
    width: int, out: int, out_stride: int,
) -> None:  # fmt: skip
    """The phase of a product. Its pieces are the panels of weights."""
    while True:
        piece = claim(counters, phase, count)
        if piece < 0:
            break
        panel = panels[piece]
        product(
            m.quantized, rows, b.rounded if m.quantized else x, width if m.quantized else x_stride,
            b.scale, panel[p.WEIGHTS], panel[p.SCALES], panel[p.OUTPUTS], width, out + 4 * panel[p.OFFSET],
            out_stride,
        )  # fmt: skip
        done(counters, phase)
    wait(counters, phase, count)


@compiled_and_cached
def run(thread: int, counters: int, m: Any, a: Any, b: Any, s: Any) -> None:
    """Run the rows of `s` through all layers, and its kept rows through the head, which writes the logits.

    `m` is plan.Model, `a` plan.Adapters, `b` plan.Buffers and `s` plan.Rows. All threads of a team call this
    with the same arguments except `thread`; `counters` are the team's.
    """
    count, kept = len(s.rows), len(s.keep)
    pieces = count * m.kv_heads  # of attention
    scores, ranks = b.scores + 4 * thread * b.thread_room, b.ranks + 4 * thread * b.rank_room
    hidden, inner = m.hidden_width, m.inner_width
    phase = 0
    for layer in range(len(m.layers)):
        panels = m.panels[layer]
        _attention_norm(m, a, b, s, counters, phase, count, layer, ranks, scores)
        _panels(
            m, b, counters, phase + 1, panels[p.QKV], m.counts[p.QKV], count, b.normed, hidden, hidden,
            b.qkv, m.qkv_width,
        )  # fmt: skip
        _fill_cache(m, a, b, s, counters, phase + 2, count, layer, ranks, scores)
        _attend_all(m, a, b, s, counters, phase + 3, pieces, layer, ranks, scores)
        _quantize_attended(m, a, b, s, counters, phase + 4, count, layer, ranks, scores)
        _panels(
            m, b, counters, phase + 5, panels[p.OUTPUT], m.counts[p.OUTPUT], count, b.attended,
            m.attended_width, m.attended_width, b.branch, hidden,
        )  # fmt: skip
        _feed_forward_norm(m, a, b, s, counters, phase + 6, count, layer, ranks, scores)
        _panels(
            m, b, counters, phase + 7, panels[p.GATE_UP], m.counts[p.GATE_UP], count, b.normed, hidden,
            hidden, b.gate_up, 2 * inner,
        )  # fmt: skip
        _gate(m, a, b, s, counters, phase + 8, count, layer, ranks, scores)
        _panels(
            m, b, counters, phase + 9, panels[p.DOWN], m.counts[p.DOWN], count, b.gate_up, 2 * inner,
            inner, b.branch, hidden,
        )  # fmt: skip
        phase += _PHASES
    _final_norm(m, a, b, s, counters, phase, kept, len(m.layers) - 1, ranks, scores)
    _panels(
        m, b, counters, phase + 1, m.head_panels, len(m.head_panels), kept, b.normed, hidden, hidden,
        b.logits, m.vocabulary,
    )  # fmt: skip


def phases(layers: int) -> int:
    """The number of phases of a step with `layers` layers."""
    return _PHASES * layers + 2
