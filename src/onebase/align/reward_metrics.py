"""How good a reward model is: pair accuracy, calibration, and the distribution of its scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The pairs whose predicted probability lies in one of ten intervals: the mean `predicted`
    probability, the `observed` share of correct ones, and their number.
    """

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class ScoreReport:
    """A reward model on held-out answers.

    `accuracy` is the share of the `pairs` whose better answer scores higher (a tie counts half). `bins`
    compare sigmoid(score difference), the probability by Bradley-Terry, with the observed share of correct
    pairs; `calibration_error` is their mean distance, weighted by number. `mean` and `std` are those of
    single scores.
    """

    accuracy: float
    pairs: int
    calibration_error: float
    bins: tuple[Bin, ...]
    mean: float
    std: float
    lowest: float
    highest: float

    def to_dict(self) -> dict[str, Any]:
        """As a record holds it."""
        values = asdict(self)
        return {"deviation" if key == "std" else key: value for key, value in values.items()}


def report(scores: Tensor, better: Sequence[int], worse: Sequence[int]) -> ScoreReport:
    """The report on the scores of single answers, [answers], with pairs given by index."""
    scores = scores.double().cpu()
    difference = scores[torch.tensor(better).long()] - scores[torch.tensor(worse).long()]
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    # The probability of the answer that the model prefers, and whether that is the better one.
    predicted = torch.sigmoid(difference.abs())
    place = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        in_bin = place == number
        if bool(in_bin.any()):
            mean, share = float(predicted[in_bin].mean()), float(right[in_bin].mean())
            bins.append(Bin(mean, share, int(in_bin.sum())))
    total = max(len(right), 1)
    error = sum(item.count * abs(item.predicted - item.observed) for item in bins) / total
    return ScoreReport(
        accuracy=float(right.mean()) if len(right) else 0.5,
        pairs=len(right),
        calibration_error=error,
        bins=tuple(bins),
        mean=float(scores.mean()),
        std=float(scores.std(correction=0)),
        lowest=float(scores.min()),
        highest=float(scores.max()),
    )


def pairs_of(ratings: Sequence[float], margin: float) -> tuple[list[int], list[int]]:
    """All pairs of rated answers that differ by `margin` or more: indices of the better and the worse."""
    better, worse = [], []
    for one in range(len(ratings)):
        for other in range(len(ratings)):
            if ratings[one] - ratings[other] >= margin > 0:
                better.append(one)
                worse.append(other)
    return better, worse
