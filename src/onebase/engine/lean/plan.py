"""The arguments of a step: the model's tables and the step's rows, as named tuples that numba supports.

Addresses are int64; 0 means none. Rows of buffers are padded to a multiple of PAD numbers.
"""

from typing import NamedTuple

from numpy import ndarray

# The four products of a layer.
QKV, OUTPUT, GATE_UP, DOWN = range(4)
# The modules that adapters change.
QUERY, KEY, VALUE, OUT, GATE, UP, DOWN_PROJ = range(7)
MODULES = 7
# Columns of `Model.layers`: the weights of norms (before attention, before the feed-forward, after each of
# the two, of queries, of keys), biases, the sliding window (0: none), the index of the rotary table.
NORM_1, NORM_2, POST_1, POST_2, QUERY_NORM, KEY_NORM = range(6)
BIAS_QKV, BIAS_OUT, BIAS_GATE_UP, BIAS_DOWN, WINDOW, ROPE = range(6, 12)
LAYER_COLUMNS = 12
# Columns of `Model.panels`: the weights, their scales, the number of outputs, the index of the first one.
WEIGHTS, SCALES, OUTPUTS, OFFSET = range(4)
# Columns of `Adapters.deltas`.
DELTA_A, DELTA_B, RANK, FACTORS = range(4)
# Columns of `Rows.rows`: the adapter (-1: none), the position, the sequence, and the block and slot of the
# row's key and value in the KV cache.
ADAPTER, POSITION, SEQUENCE, BLOCK_AT, SLOT = range(5)


class Model(NamedTuple):
    """A base's sizes and weights. Widths are padded sizes."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    hidden_width: int
    head_width: int
    attended_width: int
    qkv_width: int
    inner_width: int
    key_at: int  # where keys begin in a row of queries, keys and values
    value_at: int  # where values begin
    quantized: bool
    gelu: bool
    interleaved: bool  # the rotary embedding rotates neighbours (GLM), not halves
    rotary: int
    epsilon: float
    attention_scale: float
    # The integer that a row's largest activation is scaled to, by the product's inputs.
    hidden_top: int
    attended_top: int
    inner_top: int
    layers: ndarray  # int64 [layers, LAYER_COLUMNS]
    panels: ndarray  # int64 [layers, 4, most panels, 4]
    counts: ndarray  # int64 [4], the number of panels of each product
    head_panels: ndarray  # int64 [panels, 4]
    final_norm: int
    ropes: ndarray  # float32 [tables, 2, positions, rotary / 2]: cosines and sines


class Adapters(NamedTuple):
    """The changes by the adapters of a step."""

    half: bool  # deltas are in bfloat16
    deltas: ndarray  # int64 [adapters, layers, MODULES, 4]
    scales: ndarray  # float32 [adapters, layers, MODULES], of low-rank deltas
    inputs: ndarray  # int64 [adapters, layers, 4], vectors that scale the inputs of products
    masked_prefix: ndarray  # int64 [adapters, layers], how many of the first keys a layer masks


class Rows(NamedTuple):
    """One step's rows: `rows`, int64 [rows, 5]; `entries`, int64 (address, tokens), the KV blocks, of which
    sequence `s` has those from `starts[s]` to `starts[s + 1]`; `keep`, int64, the rows whose logits are
    computed.
    """

    rows: ndarray
    entries: ndarray
    starts: ndarray
    keep: ndarray


class Buffers(NamedTuple):
    """Addresses of a step's buffers, and the sizes of their parts per thread."""

    hidden: int  # the residual stream, [rows, hidden_width]
    normed: int  # [rows, widest input]
    rounded: int  # int16 [rows, widest input]
    scale: int  # [rows]
    qkv: int  # [rows, qkv_width]
    query: int  # [rows, heads * head_width]
    attended: int  # [rows, attended_width]
    gate_up: int  # [rows, 2 * inner_width]
    branch: int  # [rows, hidden_width]
    scores: int  # [threads, thread_room]: the scores [4, score_room] and the outputs of four heads
    score_room: int
    thread_room: int
    ranks: int  # [threads, rank_room]
    rank_room: int
    logits: int  # [kept, vocabulary]
