"""Logits processors: penalties and masks, applied to a row of logits before sampling."""

import numpy as np
from numpy.typing import NDArray

from onebase.engine.distribution import Floats
from onebase.engine.lean.jit import compiled_and_cached

_f = np.float32
_ZERO, _LOWEST = _f(0), _f(-np.inf)


@compiled_and_cached
def penalize(
    row: Floats, seen: Floats, counts: Floats, repetition: float, frequency: float, presence: float
) -> None:
    """Apply the three penalties in place. `seen` is 1 for tokens of the prompt and the answer;
    `counts` has the number of times each token is in the answer.
    """
    for token in range(row.size):
        x = row[token]
        # CTRL (Keskar et al. 2019), section 4.1; a negative logit is multiplied instead.
        penalized = x / _f(repetition) if x > _ZERO else x * _f(repetition)
        count = counts[token]
        lowered = count * _f(frequency) + (_f(presence) if count > _ZERO else _ZERO)
        row[token] = (penalized if seen[token] > _ZERO else x) - lowered


@compiled_and_cached
def forbid(row: Floats, allowed: NDArray[np.uint32]) -> None:
    """Set the logits of tokens whose bit in `allowed` is 0, and of tokens beyond it, to -inf."""
    for token in range(row.size):
        word = token >> 5
        if word >= allowed.size or not (allowed[word] >> np.uint32(token & 31)) & np.uint32(1):
            row[token] = _LOWEST
