"""In which order a job takes its rows."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from onebase.engine.rows import TokenRow

Item = TypeVar("Item")


class Order(Generic[Item]):
    """An endless iterator: every row once an epoch, `size` rows a step, in an order that `seed`
    and the epoch give. The last step of an epoch takes what is left.
    """

    def __init__(self, rows: list[Item], size: int, seed: int) -> None:
        self._rows = rows
        self._size = size
        self._random = random.Random(seed)
        self._shuffle()

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self._rows) / self._size)

    def __iter__(self) -> Iterator[list[Item]]:
        return self

    def __next__(self) -> list[Item]:
        if self._taken >= len(self._rows):
            self._shuffle()
        rows = self._shuffled[self._taken : self._taken + self._size]
        self._taken += len(rows)
        return rows

    def _shuffle(self) -> None:
        self._before = torch.tensor(self._random.getstate()[1])
        self._shuffled = list(self._rows)
        self._random.shuffle(self._shuffled)
        self._taken = 0

    def state(self) -> dict[str, Any]:
        """Where the order stands: the random state this epoch began with, and the rows taken."""
        return {"random": self._before, "taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands."""
        version, _, spare = self._random.getstate()
        self._random.setstate((version, tuple(state["random"].tolist()), spare))
        self._shuffle()
        self._taken = state["taken"]


class GivenOrder:
    """An endless iterator over `batches` as they are given, all of them an epoch: what `Order` is
    to a training, this is to a trial of it.
    """

    def __init__(self, batches: Sequence[list[TokenRow]]) -> None:
        self._batches = batches
        self._taken = 0

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self._batches)

    def __next__(self) -> list[TokenRow]:
        self._taken += 1
        return self._batches[(self._taken - 1) % len(self._batches)]

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands."""
        self._taken = state["taken"]
