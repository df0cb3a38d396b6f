"""The similarity of texts, against sets of n-grams that are compared pair by pair."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from onebase.compare import ngram_similarity
from onebase.compare.ngram_similarity import NgramSimilarity

WORDS = [
    "red",
    "lamp",
    "table",
    "oak",
    "broken",
    "parcel",
    "late",
    "card",
    "连衣裙",
    "退款",
    "物流",
]


def texts(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randrange(1, 9))) for _ in range(count)]


def ngrams(text: str) -> set[str]:
    """By slices of the text; one that runs over its end is cut there."""
    plain = re.sub(r"(?<=[\u4e00-\u9fff]) | (?=[\u4e00-\u9fff])", "", text)
    padded = f" {plain} "
    found = set()
    for at, first in enumerate(padded):
        length = 2 if "\u4e00" <= first <= "\u9fff" else 4
        found.add(padded[at : at + length].ljust(4, "$"))
    return found


def similarities(some: list[str], others: list[str]) -> list[list[float]]:
    sets = [[ngrams(text) for text in part] for part in (some, others)]
    frequency = Counter(ngram for part in sets for one in part for ngram in one)
    count = len(some) + len(others)

    def weight(one: set[str]) -> float:
        return math.fsum(1 + math.log((1 + count) / (1 + frequency[ngram])) for ngram in one)

    return [[weight(one & other) / weight(one | other) for other in sets[1]] for one in sets[0]]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 1.0])
def test_equal_to_a_comparison_of_all_pairs(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram_similarity, "_ROWS", 7)
    monkeypatch.setattr(ngram_similarity, "_PAIRS", 5)
    some, others = texts(40, 1), texts(50, 2)
    rows, columns, found = NgramSimilarity(some, others).pairs(threshold)
    expected = {
        (row, column): value
        for row, values in enumerate(similarities(some, others))
        for column, value in enumerate(values)
        if value >= threshold - 1e-9
    }
    pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == len(expected) > 0
    for pair, value in zip(pairs, found, strict=True):
        assert value == pytest.approx(expected[pair], abs=1e-9)


def test_the_similarity_of_given_pairs() -> None:
    some, others = texts(20, 3), texts(20, 4)
    rows, columns = np.arange(20, dtype=np.int32), np.arange(20, dtype=np.int32)[::-1]
    expected = similarities(some, others)
    found = NgramSimilarity(some, others).of(rows, columns)
    assert found == pytest.approx([expected[row][19 - row] for row in range(20)])


def test_what_all_texts_share_counts_little() -> None:
    frame = "Please classify the following review: "
    reviews = ["the plot is thin", "great music", "too long for me", "what a cast", "never again"]
    alone = NgramSimilarity([frame + reviews[0]], [frame + reviews[1]])
    among = NgramSimilarity([frame + reviews[0]], [frame + review for review in reviews[1:] * 9])
    at = np.zeros(1, np.int32)
    assert among.of(at, at)[0] < alone.of(at, at)[0] - 0.1


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_a_threshold_outside_of_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=str(threshold)):
        NgramSimilarity(["a"], ["a"]).pairs(threshold)


def test_half_a_character_is_no_failure() -> None:
    assert NgramSimilarity(["\ud83d"], ["\ud83d"]).pairs(0.8)[2] == pytest.approx(1)
