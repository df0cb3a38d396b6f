"""How good a reward model is: pair accuracy, calibration, and what its scores are like."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The pairs whose preferred side got a probability between two tenths: their mean `predicted`
    probability, the share `observed` to be right, and their number.
    """

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class ScoreReport:
    """A reward model on held-out answers.

    `accuracy` is the share of pairs whose better answer scores higher (a tie counts half), over
    `pairs` of them; `bins` and `calibration_error` (their mean distance, weighted by number) compare
    sigmoid(score difference), as Bradley-Terry has it, with how often it was right. `mean` and
    `deviation` are of single scores.
    """

    accuracy: float
    pairs: int
    calibration_error: float
    bins: tuple[Bin, ...]
    mean: float
    deviation: float
    lowest: float
    highest: float

    def to_dict(self) -> dict[str, Any]:
        """As a record holds it."""
        return {**asdict(self), "bins": [asdict(item) for item in self.bins]}


def report(scores: Tensor, better: Sequence[int], worse: Sequence[int]) -> ScoreReport:
    """Of the scores of single answers, [answers], and the pairs among them by index."""
    scores = scores.double().cpu()
    difference = scores[torch.tensor(better).long()] - scores[torch.tensor(worse).long()]
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    # The side that the model prefers, and whether it is the better one.
    predicted = torch.sigmoid(difference.abs())
    place = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        own = place == number
        if bool(own.any()):
            bins.append(Bin(float(predicted[own].mean()), float(right[own].mean()), int(own.sum())))
    total = max(len(right), 1)
    error = sum(item.count * abs(item.predicted - item.observed) for item in bins) / total
    return ScoreReport(
        accuracy=float(right.mean()) if len(right) else 0.5,
        pairs=len(right),
        calibration_error=error,
        bins=tuple(bins),
        mean=float(scores.mean()),
        deviation=float(scores.std(correction=0)),
        lowest=float(scores.min()),
        highest=float(scores.max()),
    )


def pairs_of(ratings: Sequence[float], margin: float) -> tuple[list[int], list[int]]:
    """All pairs of rated answers that differ by `margin` or more: the better and the worse ones."""
    better, worse = [], []
    for one in range(len(ratings)):
        for other in range(len(ratings)):
            if ratings[one] - ratings[other] >= margin > 0:
                better.append(one)
                worse.append(other)
    return better, worse
