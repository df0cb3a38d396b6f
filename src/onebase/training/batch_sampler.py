"""The order in which a job takes its rows."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from onebase.engine.rows import TokenRow

Item = TypeVar("Item")


class BatchSampler(Generic[Item]):
    """An endless iterator over batches of `size` rows: every row once an epoch, in an order given by
    `seed` and the epoch. The last batch of an epoch has the rows that are left.
    """

    def __init__(self, rows: list[Item], size: int, seed: int) -> None:
        self._rows = rows
        self._size = size
        self._random = random.Random(seed)
        self._shuffle()

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self._rows) / self._size)

    def __iter__(self) -> Iterator[list[Item]]:
        return self

    def __next__(self) -> list[Item]:
        rows = self.coming()
        self._taken += len(rows)
        return rows

    def coming(self) -> list[Item]:
        """The next batch, which stays the next."""
        if self._taken >= len(self._rows):
            self._shuffle()
        return self._shuffled[self._taken : self._taken + self._size]

    def _shuffle(self) -> None:
        self._random_at_start = torch.tensor(self._random.getstate()[1])
        self._shuffled = list(self._rows)
        self._random.shuffle(self._shuffled)
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """The random state at the start of this epoch, and how many rows were taken since."""
        return {"random": self._random_at_start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        version, _, spare = self._random.getstate()
        self._random.setstate((version, tuple(state["random"].tolist()), spare))
        self._shuffle()
        self._taken = state["taken"]


class FixedBatches:
    """An endless iterator over given batches in their order, all of them an epoch: the sampler of a dry
    run.
    """

    def __init__(self, batches: Sequence[list[TokenRow]]) -> None:
        self._batches = batches
        self._taken = 0

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self._batches)

    def __next__(self) -> list[TokenRow]:
        rows = self.coming()
        self._taken += 1
        return rows

    def coming(self) -> list[TokenRow]:
        """The next batch, which stays the next."""
        return self._batches[self._taken % len(self._batches)]

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._taken = state["taken"]
