"""Ties at a rung: candidates whose held-out losses cannot be told apart on the rows that judged them."""

import math
from collections.abc import Callable, Hashable, Sequence

from onebase.engine.rows import TokenRow
from onebase.search.candidate import Candidate
from onebase.training.job_state import JobState


class RowLosses:
    """The loss of every held-out row at the latest evaluation of each candidate."""

    def __init__(self) -> None:
        self._by_task: dict[str, list[float]] = {}

    def recorder(self, states: Sequence[JobState]) -> Callable[[TokenRow, float], None]:
        """Takes the rows of an evaluation of `states`, in any order."""
        places = {
            id(row): (state.task, index)
            for state in states
            for index, row in enumerate(state.data.held_out)
        }
        evaluated = {state.task: [math.nan] * len(state.data.held_out) for state in states}
        self._by_task |= evaluated

        def record(row: TokenRow, loss: float) -> None:
            task, index = places[id(row)]
            evaluated[task][index] = loss

        return record

    def tied(self, one: Candidate, other: Candidate) -> bool:
        """Whether the difference of their losses is within its standard error, over the same rows."""
        losses = [self._by_task.get(item.state.task, []) for item in (one, other)]
        rows = one.state.data.held_out
        if not len(losses[0]) == len(losses[1]) == len(rows):
            return False
        differences = [first - second for first, second in zip(*losses, strict=True)]
        labels = [row.labels for row in rows]
        inputs = [row.ids[: row.context] for row in rows]
        difference, error = paired_difference(differences, labels, inputs)
        return abs(difference) <= error


def paired_difference(
    differences: Sequence[float], labels: Sequence[int], inputs: Sequence[Hashable]
) -> tuple[float, float]:
    """The difference of two losses a label, and its standard error, from the differences of each row's
    summed losses and its number of labels.

    The loss is a ratio of sums, so the error is that of the linearised ratio (Cochran, Sampling
    Techniques, 1977, section 6.3); rows with the same input are one cluster. Infinite for one cluster.
    """
    ratio = math.fsum(differences) / sum(labels)
    clusters: dict[Hashable, float] = {}
    for difference, count, key in zip(differences, labels, inputs, strict=True):
        clusters[key] = clusters.get(key, 0.0) + difference - ratio * count
    if len(clusters) < 2:
        return ratio, math.inf
    squares = math.fsum(residual**2 for residual in clusters.values())
    correction = len(clusters) / (len(clusters) - 1)
    return ratio, math.sqrt(correction * squares) / sum(labels)
