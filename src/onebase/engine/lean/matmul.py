"""Matrix products of the lean runner: a few rows of activations times weights [outputs, inputs].

A tile computes some rows by some outputs with all sums in registers. Each sum runs over the inputs in the same
order in every tile, so a row's product does not depend on the other rows. The sums of the integer product are
exact.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from onebase.engine.lean.jit import by_count, compiled
from onebase.engine.lean.vector import AVX2, AVX512, F32, I8, I16, I32, LANES, Emit, vector_function

_INTS = 32 if AVX512 else 16  # inputs per step of an integer tile
_AHEAD = 4096  # bytes by which weights are prefetched: twice the speed for one row (LOG.md)
# The outputs of a tile by its rows.
_INTEGER_TILES = {4: 4, 3: 4, 2: 4, 1: 4} if AVX512 else {4: 2, 3: 2, 2: 4, 1: 4}
_FLOAT_TILES = {4: 4, 3: 4, 2: 4, 1: 4} if AVX512 else {4: 3, 3: 3, 2: 4, 1: 4}


def largest_activation(inputs: int) -> int:
    """The integer that the largest activation of a row is scaled to, such that no sum of products with
    weights of up to 127 overflows 32 bits.
    """
    return min(32767, (2**31 - 1) // (127 * inputs))


def _pairs(e: Emit, x: Any, w: Any) -> Any:
    """Products of 16-bit integers, summed in pairs of neighbours in 32 bits."""
    half = ir.VectorType(I32, _INTS // 2)
    if AVX512:
        return e.call("llvm.x86.avx512.pmaddw.d.512", half, [x, w])
    if AVX2:
        return e.call("llvm.x86.avx2.pmadd.wd", half, [x, w])
    wide = ir.VectorType(I32, _INTS)
    product = e.b.mul(e.b.sext(x, wide), e.b.sext(w, wide))
    even, odd = (
        e.b.shuffle_vector(product, product, ir.Constant(half, list(range(first, _INTS, 2))))
        for first in (0, 1)
    )
    return e.b.add(even, odd)


_Cell = tuple[int, int]  # a row and an output of a tile


def _four(cells: Sequence[_Cell], sums: Sequence[Any]) -> list[tuple[_Cell, Any]]:
    """The first four sums of a tile with their cells. If there are fewer, the last one is repeated."""
    first = list(zip(cells, sums, strict=True))[:4]
    return first + [first[-1]] * (4 - len(first))


def _store(e: Emit, four: Any, cells: Sequence[_Cell], out: Any, stride: Any) -> None:
    """Store four numbers of a tile, neighbours with one instruction."""
    at = 0
    while at < 4:
        row, output = cells[at]
        count = 1
        while at + count < 4 and cells[at + count] == (row, output + count):
            count += 1
        if count == 3:
            count = 2
        target = e.at(out, e.b.add(e.b.mul(e.const(row), stride), e.const(output)), 4)
        if count == 1:
            value = e.b.extract_element(four, ir.Constant(I32, at))
            e.b.store(value, e.b.inttoptr(target, F32.as_pointer()))
        else:
            e.store(e.picked(four, four, range(at, at + count)), target)
        at += count


def _integer_tile(rows: int, outputs: int) -> Callable[..., Any]:
    """out[r, o] = (x[r] . w[o]) sx[r] sw[o]; `x` has 16-bit rows of `k` numbers, `w` 8-bit rows. `k` is a
    multiple of PAD; rows of `out` begin `stride` numbers apart.
    """

    @vector_function("iiiiiii")
    def tile(e: Emit, x: Any, w: Any, k: Any, out: Any, stride: Any, sx: Any, sw: Any) -> None:
        b = e.b
        sums, four = ir.VectorType(I32, _INTS // 2), ir.VectorType(F32, 4)
        xs = [e.at(x, b.mul(e.const(row), k), 2) for row in range(rows)]
        ws = [e.at(w, b.mul(e.const(output), k), 1) for output in range(outputs)]

        def body(index: Any, state: list[Any]) -> list[Any]:
            weights = [
                b.sext(
                    e.load(b.add(row, index), ir.VectorType(I8, _INTS)), ir.VectorType(I16, _INTS)
                )
                for row in ws
            ]
            e.fetch(
                b.add(w, b.add(e.const(_AHEAD), b.mul(index, e.const(outputs)))), outputs * _INTS
            )
            new = []
            for row in range(rows):
                inputs = e.load(e.at(xs[row], index, 2), ir.VectorType(I16, _INTS))
                for output in range(outputs):
                    new.append(
                        b.add(state[row * outputs + output], _pairs(e, inputs, weights[output]))
                    )
            return new

        zero = ir.Constant(sums, [0] * (_INTS // 2))
        state = e.loop(k, _INTS, body, [zero] * (rows * outputs))
        cells = [(row, output) for row in range(rows) for output in range(outputs)]
        for first in range(0, len(cells), 4):
            group = _four(cells[first:], state[first:])
            totals = b.sitofp(e.totals_4([total for _, total in group], _INTS // 2), four)
            for factors, axis in ((sx, 0), (sw, 1)):
                scales: Any = ir.Constant(four, ir.Undefined)
                for number, (cell, _) in enumerate(group):
                    scale = e.load(e.at(factors, e.const(cell[axis]), 4), F32)
                    scales = b.insert_element(scales, scale, ir.Constant(I32, number))
                totals = b.fmul(totals, scales)
            _store(e, totals, [cell for cell, _ in group], out, stride)

    return tile


def _float_tile(rows: int, outputs: int) -> Callable[..., Any]:
    """As the integer tile, with 32-bit floats and without scales. Rows of `x` begin `step` numbers apart."""

    @vector_function("iiiiii")
    def tile(e: Emit, x: Any, step: Any, w: Any, k: Any, out: Any, stride: Any) -> None:
        b = e.b
        xs = [e.at(x, b.mul(e.const(row), step), 4) for row in range(rows)]
        ws = [e.at(w, b.mul(e.const(output), k), 4) for output in range(outputs)]

        def body(index: Any, state: list[Any]) -> list[Any]:
            weights = [e.load(e.at(row, index, 4), e.floats) for row in ws]
            ahead = b.add(e.const(_AHEAD), b.mul(index, e.const(4 * outputs)))
            e.fetch(b.add(w, ahead), 4 * outputs * LANES)
            new = []
            for row in range(rows):
                inputs = e.load(e.at(xs[row], index, 4), e.floats)
                for output in range(outputs):
                    new.append(e.fma(inputs, weights[output], state[row * outputs + output]))
            return new

        state = e.loop(k, LANES, body, [e.splat(0.0)] * (rows * outputs))
        cells = [(row, output) for row in range(rows) for output in range(outputs)]
        for first in range(0, len(cells), 4):
            group = _four(cells[first:], state[first:])
            totals = e.summed_4([total for _, total in group])
            _store(e, totals, [cell for cell, _ in group], out, stride)

    return tile


_integer_tiles = by_count(_integer_tile(*tile) for tile in _INTEGER_TILES.items())
_integer_columns = by_count(_integer_tile(rows, 1) for rows in _INTEGER_TILES)
_float_tiles = by_count(_float_tile(*tile) for tile in _FLOAT_TILES.items())
_float_columns = by_count(_float_tile(rows, 1) for rows in _FLOAT_TILES)
_INTEGER_OUTPUTS = tuple(_INTEGER_TILES[rows] for rows in (1, 2, 3, 4))
_FLOAT_OUTPUTS = tuple(_FLOAT_TILES[rows] for rows in (1, 2, 3, 4))


@compiled
def _integer_rows(rows, x, sx, w, sw, n, k, out, stride):  # type: ignore[no-untyped-def]
    """A tile's rows (up to 4) by `n` outputs."""
    wide = _INTEGER_OUTPUTS[rows - 1]
    whole = n // wide * wide
    for at in range(0, whole, wide):
        _integer_tiles(rows, x, w + at * k, k, out + 4 * at, stride, sx, sw + 4 * at)
    for at in range(whole, n):
        _integer_columns(rows, x, w + at * k, k, out + 4 * at, stride, sx, sw + 4 * at)


@compiled
def _float_rows(rows, x, step, w, n, k, out, stride):  # type: ignore[no-untyped-def]
    wide = _FLOAT_OUTPUTS[rows - 1]
    whole = n // wide * wide
    for at in range(0, whole, wide):
        _float_tiles(rows, x, step, w + 4 * at * k, k, out + 4 * at, stride)
    for at in range(whole, n):
        _float_columns(rows, x, step, w + 4 * at * k, k, out + 4 * at, stride)


@compiled
def product(quantized, rows, x, step, sx, w, sw, n, k, out, stride):  # type: ignore[no-untyped-def]
    """Write the product of `rows` rows of activations and `n` rows of weights, both of `k` numbers, to `out`.

    `x`, `w`, `out` and the scales `sx`, `sw` are addresses. Rows of `x` begin `step` numbers apart, those of
    `out` `stride`. `quantized`: 16-bit activations (contiguous rows) with a scale per row, and 8-bit weights
    with a scale per output; else floats.
    """
    for row in range(0, rows, 4):
        count = min(4, rows - row)
        target = out + 4 * row * stride
        if quantized:
            _integer_rows(count, x + 2 * row * k, sx + 4 * row, w, sw, n, k, target, stride)
        else:
            _float_rows(count, x + 4 * row * step, step, w, n, k, target, stride)
