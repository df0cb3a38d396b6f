"""The operations on one row between two products: norms, rounding to integers, gates, low-rank deltas.

Counts are multiples of PAD and at least PAD; addresses are of float32 numbers unless stated otherwise.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from onebase.engine.lean.jit import by_count
from onebase.engine.lean.vector import BLOCK, F32, I16, LANES, PAD, Emit, vector_function


@vector_function("iii", "f")
def dot(e: Emit, x: Any, y: Any, n: Any) -> Any:
    """The inner product of two rows."""

    def body(index: Any, state: list[Any]) -> list[Any]:
        return [
            e.fma(
                e.load(e.at(x, index, 4), e.floats), e.load(e.at(y, index, 4), e.floats), state[0]
            )
        ]

    return e.summed(e.loop(n, LANES, body, [e.splat(0.0)])[0])


@vector_function("ii", "f")
def largest(e: Emit, x: Any, n: Any) -> Any:
    """The largest magnitude in a row; NaN if a number is not finite."""

    def body(index: Any, state: list[Any]) -> list[Any]:
        value = e.load(e.at(x, index, 4), e.floats)
        return [e.largest(state[0], e.unary("fabs", value)), e.fma(value, e.splat(0.0), state[1])]

    # The second sum is 0, or NaN if a number is not finite.
    maxima, zero = e.loop(n, LANES, body, [e.splat(0.0), e.splat(0.0)])
    return e.b.fadd(e.folded(maxima, lambda low, high: _maximum(e, low, high)), e.summed(zero))


@vector_function("ii", "f")
def maximum(e: Emit, x: Any, n: Any) -> Any:
    """The largest number in a row."""

    def body(index: Any, state: list[Any]) -> list[Any]:
        return [e.largest(state[0], e.load(e.at(x, index, 4), e.floats))]

    final = e.loop(n, LANES, body, [e.splat(-3.0e38)])[0]
    return e.folded(final, lambda low, high: _maximum(e, low, high))


def _maximum(e: Emit, low: Any, high: Any) -> Any:
    return e.call(f"llvm.maxnum.v{low.type.count}f32", low.type, [low, high])


@vector_function("iifi")
def rounded(e: Emit, x: Any, out: Any, factor: Any, n: Any) -> None:
    """out = x * factor, rounded to 16-bit integers."""
    b = e.b
    scale = e.splat(factor)

    def body(index: Any, _: list[Any]) -> list[Any]:
        value = e.unary("rint", b.fmul(e.load(e.at(x, index, 4), e.floats), scale))
        e.store(b.trunc(b.fptosi(value, e.ints), ir.VectorType(I16, LANES)), e.at(out, index, 2))
        return []

    e.loop(n, LANES, body)


@vector_function("iifii")
def scaled(e: Emit, x: Any, weight: Any, factor: Any, out: Any, n: Any) -> None:
    """out = x * factor * weight."""
    scale = e.splat(factor)
    e.map(out, n, lambda value, by: e.b.fmul(e.b.fmul(value, scale), by), x, weight)


@vector_function("iii")
def multiply(e: Emit, x: Any, y: Any, n: Any) -> None:
    """x = x * y."""
    e.map(x, n, e.b.fmul, x, y)


@vector_function("iii")
def add(e: Emit, x: Any, y: Any, n: Any) -> None:
    """x = x + y."""
    e.map(x, n, e.b.fadd, x, y)


@vector_function("iii")
def silu_gate(e: Emit, gate: Any, up: Any, n: Any) -> None:
    """gate = silu(gate) * up."""
    b = e.b

    def gated(x: Any, by: Any) -> Any:
        denominator = b.fadd(e.splat(1.0), e.exp(b.fneg(x)))
        return b.fmul(b.fdiv(x, denominator), by)

    e.map(gate, n, gated, gate, up)


@vector_function("iii")
def gelu_gate(e: Emit, gate: Any, up: Any, n: Any) -> None:
    """gate = gelu(gate) * up, with gelu's tanh approximation: x sigmoid(2 sqrt(2/pi) (x + .044715 x^3))."""
    b = e.b

    def gated(x: Any, by: Any) -> Any:
        cube = b.fmul(b.fmul(x, x), x)
        inner = b.fmul(e.fma(cube, e.splat(0.044715), x), e.splat(-1.5957691216057308))
        denominator = b.fadd(e.splat(1.0), e.exp(inner))
        return b.fmul(b.fdiv(x, denominator), by)

    e.map(gate, n, gated, gate, up)


@vector_function("ifi", "f")
def exponentials(e: Emit, x: Any, top: Any, n: Any) -> Any:
    """x = e^(x - top); returns the sum."""
    b = e.b
    highest = e.splat(top)

    def body(index: Any, state: list[Any]) -> list[Any]:
        at = e.at(x, index, 4)
        value = e.exp(b.fsub(e.load(at, e.floats), highest))
        e.store(value, at)
        return [b.fadd(state[0], value)]

    return e.summed(e.loop(n, LANES, body, [e.splat(0.0)])[0])


def _inner_products(
    e: Emit, rows: int, x: Any, y: Any, stride: Any, width: Any, half: bool
) -> list[Any]:
    """The inner products of `x` with `rows` rows of `y`, which begin `stride` numbers apart."""
    size = 2 if half else 4
    starts = [e.at(y, e.b.mul(e.const(row), stride), size) for row in range(rows)]

    def body(index: Any, state: list[Any]) -> list[Any]:
        value = e.load(e.at(x, index, 4), e.floats)
        others = [
            e.halves(e.at(start, index, 2)) if half else e.load(e.at(start, index, 4), e.floats)
            for start in starts
        ]
        return [e.fma(value, other, total) for other, total in zip(others, state, strict=True)]

    return [e.summed(total) for total in e.loop(width, LANES, body, [e.splat(0.0)] * rows)]


def _dots(rows: int, half: bool) -> Any:
    """out[r] = scale * (x . y[r]) for `rows` rows of `y`."""

    @vector_function("iiiiif")
    def dots(e: Emit, x: Any, y: Any, stride: Any, width: Any, out: Any, scale: Any) -> None:
        for row, total in enumerate(_inner_products(e, rows, x, y, stride, width, half)):
            target = e.b.inttoptr(e.at(out, e.const(row), 4), F32.as_pointer())
            e.b.store(e.b.fmul(total, scale), target)

    return dots


dots_4, dots_1 = _dots(4, half=False), _dots(1, half=False)
half_dots_4, half_dots_1 = _dots(4, half=True), _dots(1, half=True)


def _accumulate(
    e: Emit, out: Any, inner: Callable[[Any, list[Any], list[Any]], list[Any]], count: Any, n: Any
) -> None:
    """Update the `n` numbers at `out` with `inner(row, offsets, sums)`, which returns the new sums of some
    vectors, for all rows below `count` in order. Several vectors, of PAD numbers together, are updated at a
    time, so that additions do not wait for each other.
    """

    def body(index: Any, _: list[Any]) -> list[Any]:
        offsets = [e.b.add(index, e.const(part)) for part in range(0, PAD, LANES)]
        targets = [e.at(out, offset, 4) for offset in offsets]

        def row(number: Any, state: list[Any]) -> list[Any]:
            return inner(number, offsets, state)

        sums = e.loop(count, 1, row, [e.load(target, e.floats) for target in targets])
        for value, target in zip(sums, targets, strict=True):
            e.store(value, target)
        return []

    e.loop(n, PAD, body)


def _columns(half: bool) -> Any:
    """out[o] += sum over r of h[r] b[r, o], r in order; `b` has `n` numbers per row."""

    @vector_function("iiiii")
    def columns(e: Emit, out: Any, b_rows: Any, h: Any, ranks: Any, n: Any) -> None:
        def inner(rank: Any, offsets: list[Any], state: list[Any]) -> list[Any]:
            factor = e.splat(e.load(e.at(h, rank, 4), F32))
            start = e.b.mul(rank, n)
            new = []
            for offset, total in zip(offsets, state, strict=True):
                element = e.b.add(start, offset)
                value = (
                    e.halves(e.at(b_rows, element, 2))
                    if half
                    else e.load(e.at(b_rows, element, 4), e.floats)
                )
                new.append(e.fma(factor, value, total))
            return new

        _accumulate(e, out, inner, ranks, n)

    return columns


columns, half_columns = _columns(half=False), _columns(half=True)


def _scores(heads: int) -> Any:
    """out[h, t] = scale * (q[h] . k[t]) for the BLOCK tokens of a block, whose keys are transposed,
    [width, BLOCK]. Each sum runs over the width in order. Query heads begin `width` numbers apart, their
    scores `room`. The block at `ahead` is prefetched, since blocks are far apart in memory.
    """

    @vector_function("iiiiifi")
    def scores(
        e: Emit, q: Any, k: Any, width: Any, out: Any, room: Any, scale: Any, ahead: Any
    ) -> None:
        parts = BLOCK // LANES
        queries = [e.at(q, e.b.mul(e.const(head), width), 4) for head in range(heads)]

        def body(index: Any, state: list[Any]) -> list[Any]:
            offset = e.b.mul(index, e.const(BLOCK))
            e.fetch(e.at(ahead, offset, 4))
            row = e.at(k, offset, 4)
            keys = [e.load(e.at(row, e.const(part * LANES), 4), e.floats) for part in range(parts)]
            new = []
            for head in range(heads):
                factor = e.splat(e.load(e.at(queries[head], index, 4), F32))
                for part in range(parts):
                    new.append(e.fma(factor, keys[part], state[head * parts + part]))
            return new

        state = e.loop(width, 1, body, [e.splat(0.0)] * (heads * parts))
        for head in range(heads):
            row = e.at(out, e.b.mul(e.const(head), room), 4)
            for part in range(parts):
                value = e.b.fmul(state[head * parts + part], e.splat(scale))
                e.store(value, e.at(row, e.const(part * LANES), 4))

    return scores


scores = by_count(map(_scores, (4, 3, 2, 1)))


def _weigh(heads: int) -> Any:
    """out[h] += sum over t < count of p[h, t] v[t], t in order; values are [tokens, width]. The heads' rows
    of `p` begin `room` numbers apart, those of `out` `width`. The block at `ahead` is prefetched.
    """

    @vector_function("iiiiiii")
    def weigh(
        e: Emit, p: Any, room: Any, v: Any, count: Any, out: Any, width: Any, ahead: Any
    ) -> None:
        weights = [e.at(p, e.b.mul(e.const(head), room), 4) for head in range(heads)]
        out_rows = [e.at(out, e.b.mul(e.const(head), width), 4) for head in range(heads)]

        def body(index: Any, _: list[Any]) -> list[Any]:
            offsets = [index, e.b.add(index, e.const(LANES))]
            targets = [e.at(out_row, offset, 4) for out_row in out_rows for offset in offsets]

            def row(token: Any, state: list[Any]) -> list[Any]:
                start = e.b.mul(token, width)
                e.fetch(e.at(ahead, e.b.add(start, index), 4))
                values = [e.load(e.at(v, e.b.add(start, at), 4), e.floats) for at in offsets]
                new = []
                for head in range(heads):
                    factor = e.splat(e.load(e.at(weights[head], token, 4), F32))
                    for part in range(2):
                        new.append(e.fma(factor, values[part], state[2 * head + part]))
                return new

            sums = e.loop(count, 1, row, [e.load(target, e.floats) for target in targets])
            for value, target in zip(sums, targets, strict=True):
                e.store(value, target)
            return []

        e.loop(width, 2 * LANES, body)

    return weigh


weigh = by_count(map(_weigh, (4, 3, 2, 1)))


@vector_function("iii")
def copy(e: Emit, x: Any, out: Any, n: Any) -> None:
    """out = x; `n` is a multiple of LANES."""
    e.map(out, n, lambda number: number, x)


@vector_function("iif")
def fill(e: Emit, x: Any, n: Any, value: Any) -> None:
    """x = value."""
    vector = e.splat(value)
    e.map(x, n, lambda: vector)


@vector_function("iiii")
def rotate_halves(e: Emit, head: Any, cos: Any, sin: Any, half: Any) -> None:
    """Rotary embedding (Su et al. 2021, eq. 34) of a head in place, with pairs from its two halves; `half` is
    a multiple of LANES.
    """
    b = e.b

    def body(index: Any, _: list[Any]) -> list[Any]:
        first, second = e.at(head, index, 4), e.at(head, b.add(index, half), 4)
        x, y = e.load(first, e.floats), e.load(second, e.floats)
        c, s = e.load(e.at(cos, index, 4), e.floats), e.load(e.at(sin, index, 4), e.floats)
        e.store(b.fsub(b.fmul(x, c), b.fmul(y, s)), first)
        e.store(b.fadd(b.fmul(y, c), b.fmul(x, s)), second)
        return []

    e.loop(half, LANES, body)


@vector_function("ii", "f")
def read(e: Emit, base: Any, index: Any) -> Any:
    """The float at an index."""
    return e.load(e.at(base, index, 4), F32)


@vector_function("iif")
def write(e: Emit, base: Any, index: Any, value: Any) -> None:
    """Write a float at an index."""
    e.b.store(value, e.b.inttoptr(e.at(base, index, 4), F32.as_pointer()))
