"""Scores of predicted labels: accuracy, macro-F1, and the confusion matrix that both come from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


def accuracy(prediction: str, reference: str) -> float:
    """1 if the predicted label is the right one, else 0."""
    return float(prediction == reference)


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each label was predicted for each: `counts[reference][prediction]`, both by their place
    in `labels`.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, predictions: Sequence[str], references: Sequence[str], labels: Sequence[str] = ()
    ) -> "ConfusionMatrix":
        """The matrix of predictions and their references, in the order of `labels`; labels that are not
        listed follow in alphabetical order. Raises ValueError if the lengths differ.
        """
        pairs = Counter(zip(references, predictions, strict=True))
        others = sorted({*references, *predictions} - {*labels})
        ordered = (*dict.fromkeys(labels), *others)
        return cls(ordered, tuple(tuple(pairs[row, of] for of in ordered) for row in ordered))

    @property
    def accuracy(self) -> float:
        """The share of right predictions."""
        right = sum(self.counts[at][at] for at in range(len(self.labels)))
        return right / sum(map(sum, self.counts))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that are a reference or a prediction of some row; others are left out,
        because nothing was measured of them. F1 is 2 TP / (2 TP + FP + FN), 0 where nothing is right
        (scikit-learn's `f1_score` with average="macro" and its default labels).
        """
        scores = []
        for at in range(len(self.labels)):
            referred = sum(self.counts[at])
            predicted = sum(row[at] for row in self.counts)
            if referred or predicted:
                scores.append(2 * self.counts[at][at] / (referred + predicted))
        return sum(scores) / len(scores)


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The macro-F1 of predictions; see `ConfusionMatrix.macro_f1`."""
    return ConfusionMatrix.of(predictions, references).macro_f1
