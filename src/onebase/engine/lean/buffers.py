"""The buffers of the lean runner's steps, which are reallocated when a step needs larger ones."""

import numpy as np
from numpy.typing import NDArray

from onebase.engine.lean import plan
from onebase.engine.lean.vector import BLOCK, padded

_RANKS = 64  # low-rank sums per thread, at least


class StepBuffers:
    """Buffers for steps of any size; they grow and never shrink."""

    def __init__(self, model: plan.Model, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._rows = self._keys = self._ranks = self._score_room = 0
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def hidden(self, rows: int) -> NDArray[np.float32]:
        """The residual stream of the first rows, [rows, hidden], which the caller fills."""
        return self._arrays["hidden"][:rows, : self._model.hidden]

    def reserve(self, rows: int, keys: int, ranks: int) -> None:
        """Grow the buffers for `rows` rows, `keys` keys of one row, and `ranks` ranks of one adapter."""
        model, threads = self._model, self._threads
        if rows > self._rows:
            self._rows = max(rows, 2 * self._rows)
            widest = max(model.hidden_width, model.attended_width, model.inner_width)
            widths = {
                "hidden": model.hidden_width,
                "normed": model.hidden_width,
                "rounded": widest // 2 + widest % 2,  # 16-bit integers
                "scale": 1,
                "qkv": model.qkv_width,
                "query": model.heads * model.head_width,
                "attended": model.attended_width,
                "gate_up": 2 * model.inner_width,
                "branch": model.hidden_width,
            }
            for name, width in widths.items():
                self._arrays[name] = np.zeros((self._rows, width), np.float32)
        if keys > self._keys:
            self._keys = max(keys, 2 * self._keys, 256)
            # Every block has BLOCK scores, even if a prefix fills it only in part.
            self._score_room = padded(self._keys + 2 * BLOCK)
            thread_room = 4 * self._score_room + padded(4 * model.head_width + 4)
            self._arrays["scores"] = np.zeros((threads, thread_room), np.float32)
        if max(ranks, _RANKS) > self._ranks:
            self._ranks = max(ranks, _RANKS)
            self._arrays["ranks"] = np.zeros((threads, padded(self._ranks)), np.float32)

    def table(self, logits: NDArray[np.float32]) -> plan.Buffers:
        """The buffers' addresses, for a step that writes `logits`."""
        addresses = {name: int(array.ctypes.data) for name, array in self._arrays.items()}
        return plan.Buffers(
            **addresses,
            score_room=self._score_room,
            thread_room=self._arrays["scores"].shape[1],
            rank_room=self._arrays["ranks"].shape[1],
            logits=int(logits.ctypes.data),
        )
