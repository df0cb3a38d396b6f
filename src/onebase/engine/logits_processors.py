"""What changes a row of logits before the choice: penalties, and tokens that are forbidden."""

import numpy as np
from numpy.typing import NDArray

from onebase.engine.distribution import Floats
from onebase.engine.lean.jit import compiled_and_kept

_f = np.float32
_ZERO, _LOWEST = _f(0), _f(-np.inf)


@compiled_and_kept
def penalize(
    row: Floats, seen: Floats, counts: Floats, repetition: float, frequency: float, presence: float
) -> None:
    """Apply the three penalties in place. `seen` is 1 for the tokens of prompt and answer, `counts`
    says how often each is in the answer.
    """
    for token in range(row.size):
        x = row[token]
        # CTRL (Keskar et al. 2019), section 4.1; a negative logit is multiplied instead.
        penalized = x / _f(repetition) if x > _ZERO else x * _f(repetition)
        count = counts[token]
        lowered = count * _f(frequency) + (_f(presence) if count > _ZERO else _ZERO)
        row[token] = (penalized if seen[token] > _ZERO else x) - lowered


@compiled_and_kept
def forbid(row: Floats, allowed: NDArray[np.uint32]) -> None:
    """Give -inf to the tokens whose bit in `allowed` is 0, and to those beyond it."""
    for token in range(row.size):
        word = token >> 5
        if word >= allowed.size or not (allowed[word] >> np.uint32(token & 31)) & np.uint32(1):
            row[token] = _LOWEST
