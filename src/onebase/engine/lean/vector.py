"""Vector instructions for functions compiled by numba.

Addresses are int64. Every reduction has a fixed order, however functions are inlined: this makes a row's
numbers independent of its batch, of the threads, and of how a prompt is split. (Loops that numba vectorizes
itself have no fixed order.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()


def _host_features() -> dict[str, bool]:
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know this processor
        return {}


FEATURES = {name for name, available in _host_features().items() if available}
AVX512 = {"avx512f", "avx512bw", "avx512vl"} <= FEATURES
AVX2 = "avx2" in FEATURES
# Floats per vector register. Rows of buffers are padded to a multiple of PAD numbers, so that loops need no
# remainder.
LANES = 16 if AVX512 else 8 if AVX2 else 4
PAD = 32
BLOCK = 16  # tokens per block of the KV cache; a multiple of LANES


def padded(count: int) -> int:
    """`count`, rounded up to a multiple of PAD."""
    return -(-count // PAD) * PAD


class Emit:
    """Emits vector code at the builder's position, with `lanes` floats per vector."""

    def __init__(self, builder: Any, lanes: int = LANES) -> None:
        self.b = builder
        self.lanes = lanes
        self.floats = ir.VectorType(F32, lanes)
        self.ints = ir.VectorType(I32, lanes)

    def const(self, value: int) -> Any:
        """An int64 constant."""
        return ir.Constant(I64, value)

    def call(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """A call of the LLVM intrinsic `name`."""
        module = self.b.module
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.b.call(function, arguments)

    def at(self, base: Any, index: Any, width: int) -> Any:
        """The address of element `index` of an array with elements of `width` bytes."""
        return self.b.add(base, self.b.mul(index, self.const(width)))

    def load(self, address: Any, kind: Any) -> Any:
        """The value of type `kind` at an address."""
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 1 if kind is not F32 else 4
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store a value at an address."""
        stored = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        stored.align = 1

    def fetch(self, address: Any, count: int = 64) -> None:
        """Prefetch `count` bytes; the address need not be valid."""
        pointer, hint = I8.as_pointer(), (0, 3, 1)  # for reading, into all cache levels, data
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = self.b.module.globals.get(name) or ir.Function(self.b.module, kind, name)
        for offset in range(0, count, 64):
            target = self.b.inttoptr(self.b.add(address, self.const(offset)), pointer)
            self.b.call(function, [target, *(ir.Constant(I32, value) for value in hint)])

    def splat(self, value: Any) -> Any:
        """A vector with `value`, a Python float or an LLVM float, in all lanes."""
        if isinstance(value, float):
            return ir.Constant(self.floats, [value] * self.lanes)
        empty = ir.Constant(self.floats, ir.Undefined)
        one = self.b.insert_element(empty, value, ir.Constant(I32, 0))
        mask = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(one, empty, mask)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once."""
        return self.call(f"llvm.fma.v{self.lanes}f32", self.floats, [x, y, z])

    def unary(self, name: str, x: Any) -> Any:
        """An LLVM intrinsic of one vector."""
        return self.call(f"llvm.{name}.v{self.lanes}f32", self.floats, [x])

    def largest(self, x: Any, y: Any) -> Any:
        """The elementwise maximum."""
        return self.call(f"llvm.maxnum.v{self.lanes}f32", self.floats, [x, y])

    def folded(self, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
        """A vector reduced by `join`, halving it in each step, always in this order."""
        count = self.lanes
        while count > 1:
            half = count // 2
            low, high = (
                self.b.shuffle_vector(
                    vector, vector, ir.Constant(ir.VectorType(I32, half), list(part))
                )
                for part in (range(half), range(half, count))
            )
            vector = join(low, high)
            count = half
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def summed(self, vector: Any) -> Any:
        """The sum of a vector, in the order of `folded`."""
        return self.folded(vector, self.b.fadd)

    def picked(self, x: Any, y: Any, indices: Sequence[int]) -> Any:
        """The numbers at `indices` of the concatenation of two vectors."""
        mask = ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
        return self.b.shuffle_vector(x, y, mask)

    def summed_4(self, vectors: Sequence[Any]) -> Any:
        """The sums of four float vectors, each in the order of `summed`, in one vector."""
        add, count = self.b.fadd, self.lanes
        while count > 4:
            count //= 2
            halves = range(count), range(count, 2 * count)
            vectors = [add(*(self.picked(v, v, half) for half in halves)) for v in vectors]
        first, second = (
            add(self.picked(x, y, (0, 1, 4, 5)), self.picked(x, y, (2, 3, 6, 7)))
            for x, y in (vectors[:2], vectors[2:])
        )
        even, odd = (self.picked(first, second, range(at, 8, 2)) for at in range(2))
        return add(even, odd)

    def totals_4(self, vectors: Sequence[Any], count: int) -> Any:
        """The sums of four vectors of `count` integers, in one vector. These sums are exact, so the order
        is the one with the fewest instructions.
        """
        add, lanes = self.b.add, range(0, count, 4)
        low = [vector + at for lane in lanes for at in (lane, lane + 1) for vector in (0, count)]
        first, second = (
            add(self.picked(x, y, low), self.picked(x, y, [index + 2 for index in low]))
            for x, y in (vectors[:2], vectors[2:])
        )
        low = [start + at for lane in lanes for start in (lane, lane + count) for at in range(2)]
        high = [index + 2 for index in low]
        total = add(self.picked(first, second, low), self.picked(first, second, high))
        while count > 4:
            count //= 2
            halves = range(count), range(count, 2 * count)
            total = add(*(self.picked(total, total, half) for half in halves))
        return total

    def exp(self, x: Any) -> Any:
        """e^x by Cody and Waite's range reduction and a polynomial of degree 6; within 2 ulp; 0 below -87."""
        b = self.b
        low = b.fcmp_ordered("<", x, self.splat(-87.0))
        x = self.call(f"llvm.minnum.v{self.lanes}f32", self.floats, [x, self.splat(88.0)])
        n = self.unary("floor", self.fma(x, self.splat(1.4426950408889634), self.splat(0.5)))
        r = self.fma(n, self.splat(-0.693359375), x)
        r = self.fma(n, self.splat(2.12194440e-4), r)
        p = self.splat(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
            p = self.fma(p, r, self.splat(c))
        p = self.fma(p, b.fmul(r, r), b.fadd(r, self.splat(1.0)))
        shift = b.fptosi(n, self.ints)
        bias = ir.Constant(self.ints, [127] * self.lanes)
        power = b.shl(b.add(shift, bias), ir.Constant(self.ints, [23] * self.lanes))
        scaled = b.fmul(p, b.bitcast(power, self.floats))
        return b.select(low, self.splat(0.0), scaled)

    def halves(self, address: Any) -> Any:
        """bfloat16 numbers, stored as 16-bit integers, as floats."""
        bits = self.load(address, ir.VectorType(I16, self.lanes))
        wide = self.b.zext(bits, self.ints)
        shifted = self.b.shl(wide, ir.Constant(self.ints, [16] * self.lanes))
        return self.b.bitcast(shifted, self.floats)

    def loop(
        self,
        count: Any,
        step: int,
        body: Callable[[Any, list[Any]], list[Any]],
        start: Sequence[Any] = (),
    ) -> list[Any]:
        """Emit a loop that calls `body(index, state)` for index 0, step, … below `count`, which must be
        positive. Returns the final state.
        """
        b = self.b
        before = b.block
        inside, after = b.append_basic_block("loop"), b.append_basic_block("after")
        b.branch(inside)
        b.position_at_end(inside)
        index = b.phi(I64)
        index.add_incoming(self.const(0), before)
        state = [b.phi(value.type) for value in start]
        for phi, value in zip(state, start, strict=True):
            phi.add_incoming(value, before)
        new = body(index, list(state))
        last = b.block  # not `inside` if the body contains loops
        following = b.add(index, self.const(step))
        index.add_incoming(following, last)
        for phi, value in zip(state, new, strict=True):
            phi.add_incoming(value, last)
        b.cbranch(b.icmp_signed("<", following, count), inside, after)
        b.position_at_end(after)
        return new

    def map(self, out: Any, count: Any, function: Callable[..., Any], *rows: Any) -> None:
        """Emit out = function(*rows), element by element, for rows of `count` floats."""

        def body(index: Any, _: list[Any]) -> list[Any]:
            values = [self.load(self.at(row, index, 4), self.floats) for row in rows]
            self.store(function(*values), self.at(out, index, 4))
            return []

        self.loop(count, self.lanes, body)


def vector_function(
    arguments: str, result: str = "void"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that makes a numba function of `emit(e, *values)`, which emits its code.

    `arguments` has a letter for each: `i` is an int64 (an address or a count), `f` a float32.
    """
    kinds = {"i": types.int64, "f": types.float32, "void": types.void}

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        signature = kinds[result](*(kinds[letter] for letter in arguments))

        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
            value = emit(Emit(builder), *values)
            return context.get_dummy_value() if result == "void" else value

        names = ", ".join(f"a{index}" for index in range(len(arguments)))
        # numba takes the number of parameters from the function's signature.
        namespace: dict[str, Any] = {"typed": lambda: (signature, generate)}
        exec(f"def function(typingctx, {names}):\n    return typed()", namespace)
        namespace["function"].__name__ = emit.__name__
        function: Callable[..., Any] = intrinsic(namespace["function"])
        return function

    return decorate
