"""Pair accuracy and calibration on scores worked out by hand."""

import math

import pytest
import torch

from onebase.align.reward_metrics import pairs_of, report


def test_accuracy_ties_and_statistics() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0, 0.0])
    found = report(scores, [0, 1, 3], [1, 2, 0])  # right, a tie, wrong
    assert found.pairs == 3
    assert found.accuracy == pytest.approx((1 + 0.5 + 0) / 3)
    assert (found.mean, found.lowest, found.highest) == (1.0, 0.0, 2.0)
    assert found.std == pytest.approx(math.sqrt(0.5))


def test_calibration_by_hand() -> None:
    # sigmoid(log 3) is .75: of four such pairs three are right, so the model knows how sure to be
    sure = math.log(3)
    scores = torch.tensor([sure, 0.0])
    found = report(scores, [0, 0, 0, 1], [1, 1, 1, 0])
    (only,) = found.bins
    assert only.count == 4
    assert only.predicted == pytest.approx(0.75)
    assert only.observed == pytest.approx(0.75)
    assert found.calibration_error == pytest.approx(0, abs=1e-7)
    always = report(scores, [0, 0], [1, 1])
    assert always.calibration_error == pytest.approx(0.25)


def test_bins_hold_every_pair() -> None:
    torch.manual_seed(0)
    scores = torch.randn(40) * 3
    better, worse = list(range(0, 40, 2)), list(range(1, 40, 2))
    found = report(scores, better, worse)
    assert sum(item.count for item in found.bins) == found.pairs == 20
    error = sum(item.count * abs(item.predicted - item.observed) for item in found.bins) / 20
    assert found.calibration_error == pytest.approx(error)


def test_without_pairs_nothing_is_claimed() -> None:
    found = report(torch.tensor([1.0, 2.0]), [], [])
    assert (found.accuracy, found.pairs, found.calibration_error) == (0.5, 0, 0.0)


def test_pairs_differ_by_the_margin() -> None:
    better, worse = pairs_of([0.0, 1.0, 2.5], 1.0)
    assert set(zip(better, worse, strict=True)) == {(1, 0), (2, 0), (2, 1)}
    assert pairs_of([0.0, 1.0, 2.5], 2.0) == ([2], [0])
