"""The order of rows: of the seed, and gone on with from anywhere."""

import io

import pytest
import torch

from onebase.engine.rows import TokenRow
from onebase.training.batch_sampler import BatchSampler


def rows(count: int) -> list[TokenRow]:
    return [TokenRow("a", (at, at), (False, True)) for at in range(count)]


def taken(order: BatchSampler, steps: int) -> list[list[int]]:
    return [[row.ids[0] for row in next(order)] for _ in range(steps)]


@pytest.mark.parametrize("before", range(9))
def test_it_goes_on_from_anywhere(before: int) -> None:
    whole = taken(BatchSampler(rows(11), 3, seed=5), 14)
    order = BatchSampler(rows(11), 3, seed=5)
    assert taken(order, before) == whole[:before]
    stream = io.BytesIO()
    torch.save(order.state_dict(), stream)  # as in a checkpoint
    stream.seek(0)
    resumed = BatchSampler(rows(11), 3, seed=0)
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    assert taken(resumed, 14 - before) == whole[before:]


def test_every_row_once_an_epoch() -> None:
    order = BatchSampler(rows(11), 4, seed=1)
    first, second = taken(order, 3), taken(order, 3)
    assert [len(step) for step in first] == [4, 4, 3]
    for epoch in (first, second):
        assert sorted(row for step in epoch for row in step) == list(range(11))
    assert first != second
    assert first != taken(BatchSampler(rows(11), 4, seed=2), 3)


@pytest.mark.parametrize("before", range(9))
def test_looking_at_what_comes_changes_nothing(before: int) -> None:
    """Not even a checkpoint that is saved between the look and the step."""
    whole = taken(BatchSampler(rows(11), 3, seed=5), 14)
    order = BatchSampler(rows(11), 3, seed=5)
    taken(order, before)
    coming = [row.ids[0] for row in order.coming()]
    assert coming == [row.ids[0] for row in order.coming()] == whole[before]
    resumed = BatchSampler(rows(11), 3, seed=0)
    resumed.load_state_dict(order.state_dict())
    assert taken(order, 14 - before) == taken(resumed, 14 - before) == whole[before:]
