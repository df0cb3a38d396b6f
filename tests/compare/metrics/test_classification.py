"""Accuracy, macro-F1 and the confusion matrix, by hand and by scikit-learn."""

import random

import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from onebase.compare.metrics.classification import ConfusionMatrix, accuracy, macro_f1

REFERENCES = ["a", "a", "a", "b", "b", "c"]
PREDICTIONS = ["a", "a", "b", "b", "c", "a"]


def test_by_hand() -> None:
    """F1: a 2·2/(3+3), b 2·1/(2+2), c 0 of (1+1). No row is or was called d."""
    matrix = ConfusionMatrix.of(PREDICTIONS, REFERENCES, labels=["a", "b", "c", "d"])
    assert matrix.labels == ("a", "b", "c", "d")
    assert matrix.counts == ((2, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0))
    assert matrix.accuracy == 3 / 6
    assert matrix.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(PREDICTIONS, REFERENCES) == matrix.macro_f1


def test_labels_that_are_not_listed_follow() -> None:
    matrix = ConfusionMatrix.of(["z", "b"], ["b", "a"], labels=["b"])
    assert matrix.labels == ("b", "a", "z")
    assert matrix.counts == ((0, 0, 1), (1, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("seed", range(30))
def test_equal_to_scikit_learn(seed: int) -> None:
    chosen = random.Random(seed)
    labels = [f"label {at}" for at in range(chosen.randrange(2, 9))]
    rows = chosen.randrange(1, 40)
    references = chosen.choices(labels, k=rows)
    predictions = [
        reference if chosen.random() < 0.6 else chosen.choice(labels) for reference in references
    ]
    matrix = ConfusionMatrix.of(predictions, references, labels)
    present = sorted({*references, *predictions})
    expected = f1_score(references, predictions, average="macro", labels=present, zero_division=0)
    assert macro_f1(predictions, references) == pytest.approx(expected, abs=1e-12)
    assert matrix.macro_f1 == pytest.approx(expected, abs=1e-12)
    assert matrix.accuracy == pytest.approx(accuracy_score(references, predictions))
    table = confusion_matrix(references, predictions, labels=labels)
    assert [list(row) for row in matrix.counts] == table.tolist()


def test_one_row() -> None:
    assert accuracy("a", "a") == 1.0
    assert accuracy("a", "A") == 0.0


def test_each_prediction_has_its_reference() -> None:
    with pytest.raises(ValueError, match="zip"):
        ConfusionMatrix.of(["a"], ["a", "b"])
