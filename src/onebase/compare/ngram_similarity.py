"""How similar texts are: the weight of the character n-grams that they share."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onebase.compare.segmentation import CHINESE

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]
_LENGTH = 4  # characters of an n-gram
_CHINESE_LENGTH = 2  # of an n-gram that begins with a Chinese character
_BITS = 22  # of the hashes that stand for n-grams
_ROWS = 1000  # texts in one matrix
_PAIRS = 5000  # pairs in one matrix
_ROUNDING = 1e-9
_NO_WORD = re.compile(r"[\W_]+")
_CHINESE = re.compile(f"[{CHINESE}]")
_BESIDE_CHINESE = re.compile(f"(?<=[{CHINESE}]) | (?=[{CHINESE}])")


class NgramSimilarity:
    """The similarity of texts to others, 0 to 1: the weighted Jaccard index of their sets of character
    n-grams, which is the weight of the n-grams in both over the weight of those in either.

    An n-gram has 4 characters, or 2 if it begins with a Chinese character. If it occurs in `df` of all `n`
    texts, it weighs 1 + ln((1 + n) / (1 + df)): what a template repeats in every row counts little. Texts
    are `normalised` first. Both sides have at least one text.
    """

    def __init__(self, texts: Sequence[str], others: Sequence[str]) -> None:
        self._texts = [_ngrams(text) for text in texts]
        self._others = [_ngrams(text) for text in others]
        frequencies = np.bincount(
            np.concatenate([*self._texts, *self._others]), minlength=1 << _BITS
        )
        count = len(texts) + len(others)
        self._weights: Floats = 1 + np.log((1 + count) / (1 + frequencies))
        self._text_weights = self._sums(self._texts)
        self._other_weights = self._sums(self._others)

    def pairs(self, threshold: float) -> tuple[Ids, Ids, Floats]:
        """All pairs of at least that similarity: the index of the text, that of the other, and the
        similarity. Raises ValueError unless 0 < `threshold` <= 1.

        Only pairs that share one of the text's heaviest n-grams are compared, which leaves none out
        (prefix filtering: Bayardo, Ma and Srikant 2007).
        """
        if not 0 < threshold <= 1:
            raise ValueError(threshold)
        smallest = threshold * (1 - _ROUNDING)
        heaviest = [self._heaviest(at, smallest) for at in range(len(self._texts))]
        texts = self._matrix(heaviest)
        rest = self._text_weights - self._sums(heaviest)
        found = []
        for begin in range(0, len(self._others), _ROWS):
            others = self._matrix(self._others[begin : begin + _ROWS])
            sharing = (texts @ others.T.tocsr()).tocoo()
            rows, columns = sharing.row, sharing.col + begin
            one, other = self._text_weights[rows], self._other_weights[columns]
            both = np.minimum(sharing.data + rest[rows], other)  # at most
            possible = both >= smallest * (one + other - both)
            rows, columns = rows[possible], columns[possible]
            similarities = self.of(rows, columns)
            near = similarities >= threshold
            found.append((rows[near], columns[near], similarities[near]))
        all_rows, all_columns, all_similarities = zip(*found, strict=True)
        return (
            np.concatenate(all_rows),
            np.concatenate(all_columns),
            np.concatenate(all_similarities),
        )

    def of(self, texts: Ids, others: Ids) -> Floats:
        """The similarity of each of these texts (by index) to the other at the same place."""
        similarities = np.zeros(len(texts))
        for begin in range(0, len(texts), _PAIRS):
            pairs = slice(begin, begin + _PAIRS)
            rows, columns = texts[pairs], others[pairs]
            one = self._matrix([self._texts[at] for at in rows])
            other = self._matrix([self._others[at] for at in columns])
            both = one.multiply(other).sum(axis=1)
            either = self._text_weights[rows] + self._other_weights[columns] - both
            similarities[pairs] = both / either
        return np.round(similarities, 9)  # the same text is 1, not nearly

    def _heaviest(self, at: int, share: float) -> Ids:
        """The heaviest n-grams of a text, until those that are left weigh less than this share of it: a
        text that shares none of them is less similar.
        """
        ids = self._texts[at]
        order = np.argsort(-self._weights[ids], kind="stable")
        weights = self._weights[ids][order]
        left = self._text_weights[at] - np.cumsum(weights) + weights
        return np.sort(ids[order[left >= share * self._text_weights[at]]])

    def _sums(self, sets: Sequence[Ids]) -> Floats:
        return np.array([self._weights[ids].sum() for ids in sets])

    def _matrix(self, sets: Sequence[Ids]) -> csr_array:
        """One row for each set. Its values are square roots, so that a product has the weight in common."""
        ids = np.concatenate(sets)
        ends = np.cumsum([0, *(len(one) for one in sets)])
        return csr_array((np.sqrt(self._weights[ids]), ids, ends), shape=(len(sets), 1 << _BITS))


def normalised(text: str) -> str:
    """A text without what makes no difference: case, punctuation, white space beyond one between words,
    compatibility forms. A text without any word keeps its symbols.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _BESIDE_CHINESE.sub("", _NO_WORD.sub(" ", folded).strip() or folded)


def _ngrams(text: str) -> Ids:
    """The hashes of a text's n-grams, sorted, each once; one begins at each character."""
    padded = f" {normalised(text)} "
    codes = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    chinese = np.zeros(len(codes), bool)
    chinese[[match.start() for match in _CHINESE.finditer(padded)]] = True
    following = np.append(codes, np.zeros(_LENGTH, np.uint64))
    hashes = np.zeros(len(codes), np.uint64)
    for at in range(_LENGTH):
        longer = hashes * np.uint64(0x9E3779B97F4A7C15) + following[at : at + len(codes)]
        hashes = longer if at < _CHINESE_LENGTH else np.where(chinese, hashes, longer)
    # The upper bits of a product depend on all bits of its factors (as in Fibonacci hashing).
    mixed = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(mixed >> np.uint64(64 - _BITS)).astype(np.int32)
