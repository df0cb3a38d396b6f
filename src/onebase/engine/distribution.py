"""Compiled kernels over one row of logits: top tokens, log-sum-exp, and sampling.

A kernel processes one row in a fixed order, so a row's results never depend on other rows. Among
equal logits, the token with the lowest id comes first. Logits may be -inf.
"""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from onebase.engine.lean.jit import compiled, compiled_and_cached

Floats = NDArray[np.float32]
Number = float | np.float32
BLOCK = 256
_SORTED = 64  # tokens that are selected by sorting; more are selected by a histogram
_BUCKETS = 4096  # of the histogram, over 12 bits of a float

_f = np.float32
_LOWEST = _f(-np.inf)
_ZERO, _ONE = _f(0), _f(1)
_UNDERFLOW = _f(-87)
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.4426950408889634), _f(0.693359375), _f(-2.12194440e-4)
_P0, _P1, _P2 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_P3, _P4, _P5 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)
_ROUND = _f(12582912.0)  # 1.5 * 2^23: adding it leaves an integer in the lowest bits


@compiled_and_cached
def top_two(rows: Floats, tokens: NDArray[np.int64], values: Floats) -> None:
    """Each row's best token, [rows], and its two highest logits, [rows, 2]."""
    for index in range(rows.shape[0]):
        row = rows[index]
        first, second, token = _LOWEST, _LOWEST, 0
        for start in range(0, row.size, BLOCK):
            stop = min(start + BLOCK, row.size)
            if not _any_above(row[start:stop], second):
                continue
            for at in range(start, stop):
                if row[at] > first:
                    first, second, token = row[at], first, at
                elif row[at] > second:
                    second = row[at]
        tokens[index] = token
        values[index, 0] = first
        values[index, 1] = second


@compiled_and_cached
def top_tokens(row: Floats, count: int, tokens: NDArray[np.int64], values: Floats) -> int:
    """The row's best `count` tokens with their logits, best first. Returns their number, which is
    smaller if the other logits are -inf.
    """
    size = 0
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        if size == count and not _any_above(row[start:stop], values[0]):
            continue
        for at in range(start, stop):
            if row[at] == _LOWEST:
                continue
            if size < count:
                tokens[size], values[size] = at, row[at]
                _sift_up(tokens, values, size)
                size += 1
            elif row[at] > values[0]:
                tokens[0], values[0] = at, row[at]
                _sift_down(tokens, values, 0, count)
    _sort(tokens, values, size)
    return size


@compiled_and_cached
def log_sum_exp(row: Floats, max_logit: Number) -> float:
    """log sum exp(row - max_logit)."""
    total = 0.0
    weights = np.empty(BLOCK, np.float32)
    powers = np.empty(BLOCK, np.float32)
    for start in range(0, row.size, BLOCK):
        part = row[start : start + BLOCK]
        total += _exp_block(part, _f(max_logit), _ONE, weights, powers)
    return math.log(total)


@compiled_and_cached
def log_sum_exp_and_mean(row: Floats, max_logit: Number, scale: Number) -> tuple[float, float]:
    """With z = (row - max_logit) * scale: log sum exp(z), and the mean of z under exp(z)."""
    total = 0.0
    mean = 0.0
    weights = np.empty(BLOCK, np.float32)
    powers = np.empty(BLOCK, np.float32)
    for start in range(0, row.size, BLOCK):
        count = min(BLOCK, row.size - start)
        part = row[start : start + count]
        total += _exp_block(part, _f(max_logit), _f(scale), weights, powers)
        for at in range(count):
            if weights[at] > _ZERO:
                mean += float(weights[at]) * float((part[at] - _f(max_logit)) * _f(scale))
    return math.log(total), mean / total


@compiled_and_cached
def sample_token(
    row: Floats,
    max_logit: Number,
    scale: Number,
    cut: tuple[int, float, float],
    random: float,
    buffers: tuple[Floats, NDArray[np.float64], NDArray[np.int64], Floats],
) -> int:
    """Sample a token from softmax(row * scale) after `cut`, with a `random` number in [0, 1). Returns
    -1 if no logit is finite.

    `cut` is (top_k, top_p, min_p), applied in the order min_p, top_k, top_p, each to the tokens that
    the previous one left. `buffers` are `sampling_buffers` of the row's size.
    """
    top_k, top_p, min_p = cut
    weights, sums, tokens, values = buffers
    sort_only = 0 < top_k <= _SORTED
    total = 0.0
    if not sort_only:
        total = _exp_all(row, _f(max_logit), _f(scale), _f(min_p), weights, sums)
        if top_k > 0:
            total = _keep_top(row, _f(max_logit), top_k, np.inf, buffers)
        if top_p == 1:
            return int(_token_at(weights, sums, total, random))
    # Sorting a few tokens is usually enough.
    count = top_tokens(row, min(top_k if sort_only else _SORTED, row.size), tokens, values)
    mass = 0.0
    for at in range(count):
        if sort_only:
            values[at] = math.exp((values[at] - _f(max_logit)) * scale)
            if values[at] < min_p:
                values[at] = _ZERO
        else:
            values[at] = weights[tokens[at]]
        mass += values[at]
    target = top_p * (mass if sort_only else total)
    if mass < target:
        total = _keep_top(row, _f(max_logit), row.size, target, buffers)
        return int(_token_at(weights, sums, total, random))
    nucleus, mass = _nucleus(values, count, target)
    point, token, cumulative = random * mass, -1, 0.0
    for at in range(nucleus):
        if values[at] > _ZERO:
            token = int(tokens[at])
            cumulative += values[at]
            if point < cumulative:
                break
    return token


def sampling_buffers(vocabulary: int) -> tuple[Any, Any, Any, Any]:
    """The buffers of `sample_token`: weights, sums of blocks, token ids and values."""
    return (
        np.empty(vocabulary, np.float32),
        np.empty(-(-vocabulary // BLOCK), np.float64),
        np.empty(vocabulary, np.int64),
        np.empty(vocabulary, np.float32),
    )


@compiled
def _any_above(part: Floats, limit: Number) -> bool:
    # Without an early exit, LLVM vectorizes the comparisons: a fourth of the time of a maximum.
    above = False
    for at in range(part.size):
        above |= part[at] > limit
    return above


@compiled
def _before(tokens: NDArray[np.int64], values: Floats, left: int, right: int) -> bool:
    """Whether the heap's entry `left` is worse than `right`, so that it is replaced first."""
    if values[left] != values[right]:
        return bool(values[left] < values[right])
    return bool(tokens[left] > tokens[right])


@compiled
def _sift_up(tokens: NDArray[np.int64], values: Floats, at: int) -> None:
    while at > 0:
        parent = (at - 1) // 2
        if not _before(tokens, values, at, parent):
            break
        tokens[at], tokens[parent] = tokens[parent], tokens[at]
        values[at], values[parent] = values[parent], values[at]
        at = parent


@compiled
def _sift_down(tokens: NDArray[np.int64], values: Floats, at: int, size: int) -> None:
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(tokens, values, child + 1, child):
            child += 1
        if not _before(tokens, values, child, at):
            break
        tokens[at], tokens[child] = tokens[child], tokens[at]
        values[at], values[child] = values[child], values[at]
        at = child


@compiled
def _sort(tokens: NDArray[np.int64], values: Floats, size: int) -> None:
    """Sort a heap, best first."""
    for last in range(size - 1, 0, -1):
        tokens[0], tokens[last] = tokens[last], tokens[0]
        values[0], values[last] = values[last], values[0]
        _sift_down(tokens, values, 0, last)


# `contract` allows a fused multiply-add. Rows stay independent: all go through the same instructions.
@numba.njit(nogil=True, fastmath={"contract"})
def _exp_block(
    part: Floats, max_logit: Number, scale: Number, out: Floats, powers: Floats
) -> float:
    """Write exp((part - max_logit) * scale) to `out` and return the sum. Cody and Waite's range reduction
    and a polynomial of degree 6; the error is within 1e-7.
    """
    for at in range(part.size):
        z = (part[at] - max_logit) * scale
        x = z if z > _UNDERFLOW else _UNDERFLOW
        rounded = x * _LOG2_E + _ROUND
        n = rounded - _ROUND
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
        out[at] = p * r * r + r + _ONE if z > _UNDERFLOW else _ZERO
        powers[at] = rounded
    bits = powers.view(np.int32)
    for at in range(part.size):
        bits[at] = (bits[at] + 127) << 23  # 2^n; the bits of `_ROUND` are shifted out
    for at in range(part.size):
        out[at] *= powers[at]
    # Eight independent sums: a single one would wait for each addition to finish.
    a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = part.size // 8 * 8
    for at in range(0, whole, 8):
        a, b, c, d = a + out[at], b + out[at + 1], c + out[at + 2], d + out[at + 3]
        e, f, g, h = e + out[at + 4], f + out[at + 5], g + out[at + 6], h + out[at + 7]
    for at in range(whole, part.size):
        a += out[at]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@compiled
def _exp_all(
    row: Floats,
    max_logit: Number,
    scale: Number,
    least: Number,
    weights: Floats,
    sums: NDArray[np.float64],
) -> float:
    """Write exp((row - max_logit) * scale) to `weights`, 0 where it is below `least`, and the sums of
    the blocks to `sums`. Returns the total.
    """
    powers = np.empty(BLOCK, np.float32)
    # Slightly lower than `least` itself: a block that passes is checked exactly afterwards.
    limit = _LOWEST
    if least > _ZERO and scale > _ZERO:
        limit = max_logit + _f((math.log(least) - 0.01) / scale)
    total = 0.0
    for block in range(sums.size):
        start = block * BLOCK
        stop = min(start + BLOCK, row.size)
        part = weights[start:stop]
        if least > _ZERO and not _any_above(row[start:stop], limit):
            part[:] = _ZERO
            sums[block] = 0.0
            continue
        sums[block] = _exp_block(row[start:stop], max_logit, scale, part, powers)
        if least > _ZERO:
            sums[block] = _zero_below(part, least)
        total += sums[block]
    return total


@compiled
def _zero_below(part: Floats, least: Number) -> float:
    """Set weights below `least` to zero; returns the sum of the others."""
    total = 0.0
    for at in range(part.size):
        if part[at] < least:
            part[at] = _ZERO
        else:
            total += part[at]
    return total


@compiled
def _keep_top(
    row: Floats,
    max_logit: Number,
    count: int,
    mass: float,
    buffers: tuple[Floats, NDArray[np.float64], NDArray[np.int64], Floats],
) -> float:
    """Set all weights to zero except those of the best `count` tokens, or of the fewest best tokens that
    hold `mass`. Returns the sum of the rest. A token whose weight is already zero counts, too.
    """
    weights, sums, tokens, gaps = buffers
    # 16 buckets per power of two of the distance to the maximum: few tokens share a bucket.
    for at in range(row.size):
        gaps[at] = max_logit - row[at]
    bits = gaps.view(np.int32)
    counts = np.zeros(_BUCKETS, np.int64)
    masses = np.zeros(_BUCKETS, np.float64)
    for at in range(row.size):
        bucket = bits[at] >> 19
        counts[bucket] += 1
        masses[bucket] += weights[at]
    border = 0
    while border < _BUCKETS - 1 and counts[border] < count and masses[border] < mass:
        count -= counts[border]
        mass -= masses[border]
        border += 1
    # Of the tokens in the border bucket, only the best are kept.
    inside = 0
    for at in range(row.size):
        if bits[at] >> 19 >= border:
            if bits[at] >> 19 == border:
                tokens[inside] = at
                inside += 1
            else:
                weights[at] = _ZERO
    values = gaps[:inside]
    for at in range(inside):
        values[at] = row[tokens[at]]
    for parent in range(inside // 2 - 1, -1, -1):
        _sift_down(tokens, values, parent, inside)
    _sort(tokens, values, inside)
    cumulative = 0.0
    for at in range(inside):
        if at >= count or cumulative >= mass:
            weights[tokens[at]] = _ZERO
        cumulative += weights[tokens[at]]
    total = 0.0
    for block in range(sums.size):
        sums[block] = _zero_below(weights[block * BLOCK : (block + 1) * BLOCK], _ZERO)
        total += sums[block]
    return total


@compiled
def _nucleus(weights: Floats, count: int, target: float) -> tuple[int, float]:
    """How many of the first `count` weights it takes to reach the mass `target`, and their mass."""
    mass = 0.0
    for at in range(count):
        if mass >= target:
            return at, mass
        mass += weights[at]
    return count, mass


@compiled
def _token_at(weights: Floats, sums: NDArray[np.float64], total: float, random: float) -> int:
    """The token at which the cumulative sum of the weights passes `random` times their total; -1 if all
    weights are zero.
    """
    point, cumulative, block = random * total, 0.0, 0
    while block < sums.size - 1 and cumulative + sums[block] <= point:
        cumulative += sums[block]
        block += 1
    # Rounding may lead past a block's last weight. A token with weight zero is never sampled.
    token = -1
    while token < 0 and block >= 0:
        for at in range(block * BLOCK, min((block + 1) * BLOCK, weights.size)):
            if weights[at] > _ZERO:
                token = at
                cumulative += weights[at]
                if point < cumulative:
                    return token
        block -= 1
    return token
