"""Products of the lean pass against numpy, at sizes that leave every tile a remainder."""

import numpy as np
import pytest

from onebase.engine.lean.matmul import largest_activation, product
from onebase.engine.lean.vector import padded

OUTPUTS = (1, 2, 3, 5, 12, 13, 47)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("width", [32, 96])
def test_integer_product_is_exact(rows: int, width: int) -> None:
    drawn = np.random.default_rng(rows)
    top = largest_activation(width)
    x = drawn.integers(-top, top + 1, (rows, width)).astype(np.int16)
    ones = np.ones(64, np.float32)
    for outputs in OUTPUTS:
        w = drawn.integers(-127, 128, (outputs, width)).astype(np.int8)
        out = np.zeros((rows, outputs + 3), np.float32)
        product(
            True, rows, x.ctypes.data, width, ones.ctypes.data, w.ctypes.data, ones.ctypes.data,
            outputs, width, out.ctypes.data, out.shape[1],
        )  # fmt: skip
        exact = (x.astype(np.int64) @ w.T.astype(np.int64)).astype(np.float32)
        assert np.array_equal(out[:, :outputs], exact)
        assert not out[:, outputs:].any()


def test_integer_product_is_scaled_by_row_and_output() -> None:
    x, w = np.full((2, 32), 3, np.int16), np.full((3, 32), 2, np.int8)
    sx, sw = np.array([1, 0.5], np.float32), np.array([1, 10, 100], np.float32)
    out = np.zeros((2, 3), np.float32)
    product(
        True, 2, x.ctypes.data, 32, sx.ctypes.data, w.ctypes.data, sw.ctypes.data, 3, 32,
        out.ctypes.data, 3,
    )  # fmt: skip
    assert out.tolist() == [[192, 1920, 19200], [96, 960, 9600]]


@pytest.mark.parametrize("width", [32, 576, 1536, 8192, 14336])
def test_the_largest_sum_fits_32_bits(width: int) -> None:
    width = padded(width)
    x = np.full((1, width), largest_activation(width), np.int16)
    w = np.full((1, width), 127, np.int8)
    one, out = np.ones(1, np.float32), np.zeros((1, 1), np.float32)
    product(
        True, 1, x.ctypes.data, width, one.ctypes.data, w.ctypes.data, one.ctypes.data, 1, width,
        out.ctypes.data, 1,
    )  # fmt: skip
    assert out[0, 0] == np.float32(127 * int(x[0, 0]) * width)
    assert largest_activation(width) >= 1000  # ten bits at the least


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 11])
def test_float_product_and_its_independence_of_the_tile(rows: int) -> None:
    drawn = np.random.default_rng(rows)
    x = drawn.standard_normal((rows, 128)).astype(np.float32)  # rows with a gap behind 96
    for outputs in OUTPUTS:
        w = drawn.standard_normal((outputs, 96)).astype(np.float32)
        out, single = np.zeros((rows, outputs), np.float32), np.zeros((1, 1), np.float32)
        product(
            False, rows, x.ctypes.data, 128, 0, w.ctypes.data, 0, outputs, 96, out.ctypes.data,
            outputs,
        )  # fmt: skip
        assert np.abs(out - x[:, :96] @ w.T).max() < 1e-4
        for row in range(rows):
            for output in range(outputs):
                product(
                    False, 1, x[row:].ctypes.data, 128, 0, w[output:].ctypes.data, 0, 1, 96,
                    single.ctypes.data, 1,
                )  # fmt: skip
                assert single[0, 0] == out[row, output]
