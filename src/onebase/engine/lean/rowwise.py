"""What happens to one row between two products: norms, rounding to integers, gates, low-rank deltas.

Counts are multiples of PAD and at least PAD; addresses are of float32 unless said otherwise.
"""

from typing import Any

from llvmlite import ir

from onebase.engine.lean.vector import F32, I16, LANES, PAD, Emit, vector_function


@vector_function("iii", "f")
def dot(e: Emit, x: Any, y: Any, n: Any) -> Any:
    """The inner product of two rows."""

    def body(index: Any, state: list[Any]) -> list[Any]:
        return [e.fma(e.load(e.at(x, index, 4), e.floats), e.load(e.at(y, index, 4), e.floats), state[0])]

    return e.summed(e.loop(n, LANES, body, [e.splat(0.0)])[0])


@vector_function("ii", "f")
def largest(e: Emit, x: Any, n: Any) -> Any:
    """The largest magnitude in a row."""

    def body(index: Any, state: list[Any]) -> list[Any]:
        return [e.largest(state[0], e.unary("fabs", e.load(e.at(x, index, 4), e.floats)))]

    final = e.loop(n, LANES, body, [e.splat(0.0)])[0]
    return e.folded(final, lambda low, high: _maximum(e, low, high))


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

    def body(index: Any, _: list[Any]) -> list[Any]:
        value = e.b.fmul(e.load(e.at(x, index, 4), e.floats), scale)
        value = e.b.fmul(value, e.load(e.at(weight, index, 4), e.floats))
        e.store(value, e.at(out, index, 4))
        return []

    e.loop(n, LANES, body)


@vector_function("iii")
def multiply(e: Emit, x: Any, y: Any, n: Any) -> None:
    """x = x * y."""

    def body(index: Any, _: list[Any]) -> list[Any]:
        at = e.at(x, index, 4)
        e.store(e.b.fmul(e.load(at, e.floats), e.load(e.at(y, index, 4), e.floats)), at)
        return []

    e.loop(n, LANES, body)


@vector_function("iii")
def add(e: Emit, x: Any, y: Any, n: Any) -> None:
    """x = x + y."""

    def body(index: Any, _: list[Any]) -> list[Any]:
        at = e.at(x, index, 4)
        e.store(e.b.fadd(e.load(at, e.floats), e.load(e.at(y, index, 4), e.floats)), at)
        return []

    e.loop(n, LANES, body)


@vector_function("iii")
def silu_gate(e: Emit, gate: Any, up: Any, n: Any) -> None:
    """gate = silu(gate) * up."""
    b = e.b

    def body(index: Any, _: list[Any]) -> list[Any]:
        at = e.at(gate, index, 4)
        x = e.load(at, e.floats)
        bottom = b.fadd(e.splat(1.0), e.exp(b.fneg(x)))
        e.store(b.fmul(b.fdiv(x, bottom), e.load(e.at(up, index, 4), e.floats)), at)
        return []

    e.loop(n, LANES, body)


@vector_function("iii")
def gelu_gate(e: Emit, gate: Any, up: Any, n: Any) -> None:
    """gate = gelu(gate) * up, gelu by its tanh form: x sigmoid(2 sqrt(2/pi) (x + .044715 x^3))."""
    b = e.b

    def body(index: Any, _: list[Any]) -> list[Any]:
        at = e.at(gate, index, 4)
        x = e.load(at, e.floats)
        cube = b.fmul(b.fmul(x, x), x)
        inner = b.fmul(e.fma(cube, e.splat(0.044715), x), e.splat(-1.5957691216057308))
        bottom = b.fadd(e.splat(1.0), e.exp(inner))
        e.store(b.fmul(b.fdiv(x, bottom), e.load(e.at(up, index, 4), e.floats)), at)
        return []

    e.loop(n, LANES, body)


@vector_function("ifi", "f")
def exponentials(e: Emit, x: Any, top: Any, n: Any) -> Any:
    """x = e^(x - top); the sum of all."""
    b = e.b
    highest = e.splat(top)

    def body(index: Any, state: list[Any]) -> list[Any]:
        at = e.at(x, index, 4)
        value = e.exp(b.fsub(e.load(at, e.floats), highest))
        e.store(value, at)
        return [b.fadd(state[0], value)]

    return e.summed(e.loop(n, LANES, body, [e.splat(0.0)])[0])


def _several(e: Emit, rows: int, x: Any, y: Any, stride: Any, width: Any, half: bool) -> list[Any]:
    """The inner products of `x` with `rows` rows of `y`, which begin `stride` numbers apart."""
    size = 2 if half else 4
    at = [e.at(y, e.b.mul(e.const(row), stride), size) for row in range(rows)]

    def body(index: Any, state: list[Any]) -> list[Any]:
        value = e.load(e.at(x, index, 4), e.floats)
        others = [
            e.halves(e.at(place, index, 2)) if half else e.load(e.at(place, index, 4), e.floats)
            for place in at
        ]
        return [e.fma(value, other, total) for other, total in zip(others, state, strict=True)]

    return [e.summed(total) for total in e.loop(width, LANES, body, [e.splat(0.0)] * rows)]


def _dots(rows: int, half: bool) -> Any:
    """out[r] = scale * (x . y[r]) for so many rows of `y`."""

    @vector_function("iiiiif")
    def dots(e: Emit, x: Any, y: Any, stride: Any, width: Any, out: Any, scale: Any) -> None:
        for row, total in enumerate(_several(e, rows, x, y, stride, width, half)):
            place = e.b.inttoptr(e.at(out, e.const(row), 4), F32.as_pointer())
            e.b.store(e.b.fmul(total, scale), place)

    return dots


dots_4, dots_1 = _dots(4, half=False), _dots(1, half=False)
half_dots_4, half_dots_1 = _dots(4, half=True), _dots(1, half=True)


def _together(e: Emit, at: Any, inner: Any, count: Any, n: Any) -> None:
    """For each vector of the `n` numbers at `at`: itself plus what `inner(row, index, sum)` adds for every
    row below `count`, in order. PAD numbers at a time, so that sums do not wait for each other.
    """

    def body(index: Any, _: list[Any]) -> list[Any]:
        offsets = [e.b.add(index, e.const(part)) for part in range(0, PAD, LANES)]
        places = [e.at(at, offset, 4) for offset in offsets]

        def row(number: Any, state: list[Any]) -> list[Any]:
            return inner(number, offsets, state)

        final = e.loop(count, 1, row, [e.load(place, e.floats) for place in places])
        for value, place in zip(final, places, strict=True):
            e.store(value, place)
        return []

    e.loop(n, PAD, body)


def _columns(half: bool) -> Any:
    """out[o] += sum over r of h[r] b[r, o], r in order; `b` has `n` numbers a row."""

    @vector_function("iiiii")
    def columns(e: Emit, out: Any, b_rows: Any, h: Any, ranks: Any, n: Any) -> None:
        def inner(rank: Any, offsets: list[Any], state: list[Any]) -> list[Any]:
            factor = e.splat(e.load(e.at(h, rank, 4), F32))
            start = e.b.mul(rank, n)
            new = []
            for offset, total in zip(offsets, state, strict=True):
                place = e.b.add(start, offset)
                own = (
                    e.halves(e.at(b_rows, place, 2))
                    if half
                    else e.load(e.at(b_rows, place, 4), e.floats)
                )
                new.append(e.fma(factor, own, total))
            return new

        _together(e, out, inner, ranks, n)

    return columns


columns, half_columns = _columns(half=False), _columns(half=True)


@vector_function("iiiiii")
def weigh(e: Emit, p: Any, v: Any, stride: Any, count: Any, out: Any, width: Any) -> None:
    """out += sum over j < count of p[j] v[j], j in order; rows of `v` are `stride` numbers apart."""

    def inner(key: Any, offsets: list[Any], state: list[Any]) -> list[Any]:
        factor = e.splat(e.load(e.at(p, key, 4), F32))
        start = e.b.mul(key, stride)
        return [
            e.fma(factor, e.load(e.at(v, e.b.add(start, offset), 4), e.floats), total)
            for offset, total in zip(offsets, state, strict=True)
        ]

    _together(e, out, inner, count, width)


@vector_function("ii", "f")
def read(e: Emit, base: Any, index: Any) -> Any:
    """The float at an index."""
    return e.load(e.at(base, index, 4), F32)


@vector_function("iif")
def write(e: Emit, base: Any, index: Any, value: Any) -> None:
    """Put a float at an index."""
    e.b.store(value, e.b.inttoptr(e.at(base, index, 4), F32.as_pointer()))
