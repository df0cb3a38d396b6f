"""Scores of generated answers against their references."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from onebase.compare.metrics.segmentation import bleu_tokenizer, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


@dataclass(frozen=True)
class AnswerScorer:
    """The scores of answers on one held-out set, under the names and in the units of `METRICS`.

    Every row is scored against its own reference alone, even where other rows have the same input.
    BLEU's tokenizer is chosen once, from all `references`.
    """

    references: tuple[str, ...]

    def score(self, answer: str, reference: str) -> dict[str, float]:
        """The scores of one row: `exact_match`, `rouge_l`, `bleu_4`, `chrf` and `length`."""
        rouge = self._rouge.score(reference, answer)["rougeL"]
        return {
            "exact_match": exact_match(answer, reference),
            "rouge_l": 100 * float(rouge.fmeasure),
            "bleu_4": self._sentence_bleu.sentence_score(answer, [reference]).score,
            "chrf": self._chrf.sentence_score(answer, [reference]).score,
            "length": float(len(answer.strip())),
        }

    def corpus_scores(self, answers: Sequence[str]) -> dict[str, float]:
        """`corpus_bleu_4` and `corpus_chrf` of the answers, which are in the order of the references."""
        references = [list(self.references)]
        return {
            "corpus_bleu_4": self._corpus_bleu.corpus_score(list(answers), references).score,
            "corpus_chrf": self._chrf.corpus_score(list(answers), references).score,
        }

    @cached_property
    def tokenizer(self) -> str:
        """The tokenizer of BLEU, as sacrebleu names it: `zh` or `13a`."""
        return bleu_tokenizer(self.references)

    @cached_property
    def _sentence_bleu(self) -> BLEU:
        return BLEU(tokenize=self.tokenizer, effective_order=True)

    @cached_property
    def _corpus_bleu(self) -> BLEU:
        # With `force` it prints no guesses whether the text was tokenized before.
        return BLEU(tokenize=self.tokenizer, force=True)

    @cached_property
    def _chrf(self) -> CHRF:
        return CHRF()

    @cached_property
    def _rouge(self) -> "RougeScorer":
        # It imports all of nltk, which takes a second.
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """Our words, as rouge_score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same text, else 0. White space (any run of it counts as one space, none at the
    ends) and Unicode's composed or decomposed forms make no difference; case and punctuation do.
    """
    return float(_normalised(answer) == _normalised(reference))


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
