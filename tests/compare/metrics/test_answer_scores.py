"""Scores of answers: equal to the reference libraries, and to numbers worked out by hand."""

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from onebase.compare.metrics.answer_scores import AnswerScorer, exact_match
from onebase.compare.metrics.metric import METRICS
from onebase.compare.metrics.segmentation import words

LONG = "the quick brown fox jumps over the lazy dog " * 60
PAIRS = {
    "English": ("The cat sat on the mat.", "A cat was sitting on the mat."),
    "identical": ("The cat sat on the mat.", "The cat sat on the mat."),
    "one word": ("yes", "yes"),
    "no word in common": ("alpha beta", "gamma delta"),
    "Chinese": ("这款连衣裙采用针织面料，优雅气质。", "这件针织连衣裙，尽显优雅的气质。"),
    "identical Chinese": ("简约的纯色针织上衣。", "简约的纯色针织上衣。"),
    "mixed": ("这款BRAND的T恤很cool，3.5折！", "这款 BRAND T恤，非常cool，3.5 折。"),
    "empty answer": ("", "The cat."),
    "empty answer in Chinese": ("", "你好"),
    "spaces": ("  \n\t ", "The cat."),
    "both empty": ("", ""),
    "punctuation": ("?!...", "。，、"),
    "punctuation against words": ("。。。", "你好。"),
    "emoji": ("😀😀 good 👍", "😀 good 👍"),
    "emoji alone": ("😀", "😀"),
    "very long": (LONG, LONG.replace("lazy", "sleepy") + "again"),
    "long against short": (LONG, "the fox"),
    "entities": ("a &quot;b&quot; &amp; c-\nd", 'a "b" & c-d'),
    "accents": ("Café Sicilia is naïve", "Cafe Sicilia is naive"),
    "full width": ("ＡＢＣ１２３", "ABC123"),
}


@pytest.mark.parametrize("tokenizer", ["13a", "zh"])
@pytest.mark.parametrize(("answer", "reference"), PAIRS.values(), ids=PAIRS)
def test_scores_are_those_of_the_reference_libraries(
    answer: str, reference: str, tokenizer: str
) -> None:
    scorer = AnswerScorer(("你好。",) if tokenizer == "zh" else ("Hello.",))
    scores = scorer.score(answer, reference)
    bleu = sacrebleu.sentence_bleu(answer, [reference], tokenize=tokenizer)
    chrf = sacrebleu.sentence_chrf(answer, [reference])
    assert scores["bleu_4"] == pytest.approx(bleu.score, abs=1e-6)
    assert scores["chrf"] == pytest.approx(chrf.score, abs=1e-6)
    # rouge_score's own tokenizer, on words that were written as ASCII beforehand.
    rouge = RougeScorer(["rougeL"]).score(as_ascii(reference), as_ascii(answer))["rougeL"]
    assert scores["rouge_l"] == pytest.approx(100 * rouge.fmeasure, abs=1e-6)
    assert all(math.isfinite(score) for score in scores.values())
    assert set(scores) < set(METRICS)


def as_ascii(text: str) -> str:
    return " ".join("w" + word.encode().hex() for word in words(text))


ASCII = [name for name, texts in PAIRS.items() if "".join(texts).isascii()]


@pytest.mark.parametrize("name", ASCII)
def test_rouge_l_of_ascii_text_is_rouge_score_s_unchanged(name: str) -> None:
    answer, reference = PAIRS[name]
    rouge = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    found = AnswerScorer(("Hello.",)).score(answer, reference)["rouge_l"]
    assert found == pytest.approx(100 * rouge, abs=1e-6)


def test_scores_by_hand() -> None:
    """The longest common subsequence is "the cat on the mat": 5 of 6 words on each side. Of the
    unigrams 5 of 6 match, of the bigrams 3 of 5, of the trigrams 1 of 4, and no 4-gram: half of 1 of 3.
    """
    answer, reference = "the cat sat on the mat", "the cat lay on the mat"
    scores = AnswerScorer((reference,)).score(answer, reference)
    assert scores["rouge_l"] == pytest.approx(100 * 5 / 6)
    bleu = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / (2 * 3)) ** (1 / 4)
    assert scores["bleu_4"] == pytest.approx(bleu)
    assert scores["length"] == 22


def test_chinese_by_hand() -> None:
    """连衣裙 / 优雅 of three words on one side and two on the other; characters for BLEU."""
    answer, reference = "针织连衣裙优雅", "连衣裙，优雅"
    assert words(answer) == ["针织", "连衣裙", "优雅"]
    scores = AnswerScorer((reference,)).score(answer, reference)
    precision, recall = 2 / 3, 2 / 2
    assert scores["rouge_l"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    # 5 of 7 characters, 3 of 6 pairs, 1 of 5 triples, none of 4; the answer is not the shorter one.
    bleu = 100 * (5 / 7 * 3 / 6 * 1 / 5 * 1 / (2 * 4)) ** (1 / 4)
    assert scores["bleu_4"] == pytest.approx(bleu)
    assert scores["length"] == 7


def test_chrf_by_hand() -> None:
    """All of "ab" is in "abc": 2 of its 3 characters, 1 of its 2 pairs. Longer n-grams are left out,
    because "ab" has none.
    """
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    found = AnswerScorer(("abc",)).score("ab", "abc")["chrf"]
    assert found == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_the_tokenizer_is_that_of_the_whole_set() -> None:
    """A row of English in a Chinese set is scored as the set is."""
    scorer = AnswerScorer(("简约的纯色上衣", "很好看", "OK"))
    assert scorer.tokenizer == "zh"
    answer, reference = "上衣很好", "上衣真好"
    assert scorer.score(answer, reference)["bleu_4"] > 0
    assert AnswerScorer(("ok", "fine")).score(answer, reference)["bleu_4"] == 0


@pytest.mark.parametrize(
    "references", [("A cat was here.", "Two dogs ran off."), ("猫在这里。", "狗跑了。")]
)
def test_corpus_scores_are_sacrebleu_s(references: tuple[str, ...]) -> None:
    scorer = AnswerScorer(references)
    answers = [references[0], references[1][:-3]]
    scores = scorer.corpus_scores(answers)
    bleu = sacrebleu.corpus_bleu(answers, [references], tokenize=scorer.tokenizer)  # type: ignore[list-item]
    chrf = sacrebleu.corpus_chrf(answers, [references])  # type: ignore[list-item]
    assert scores["corpus_bleu_4"] == pytest.approx(bleu.score, abs=1e-6)
    assert scores["corpus_chrf"] == pytest.approx(chrf.score, abs=1e-6)
    rows = [scorer.score(*pair)["bleu_4"] for pair in zip(answers, references, strict=True)]
    assert scores["corpus_bleu_4"] != pytest.approx(sum(rows) / 2)


def test_a_large_set_is_scored_without_a_word(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """sacrebleu warns of lines that end in a tokenized period."""
    texts = ("it is so .",) * 200
    scorer = AnswerScorer(texts)
    scorer.corpus_scores(texts)
    scorer.score("", "so .")
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("yes", "yes", True),
        ("  yes\n", "yes", True),
        ("one \t two", "one two", True),
        ("你好\u3000世界", "你好 世界", True),
        ("Cafe\u0301", "Café", True),
        ("Yes", "yes", False),
        ("yes.", "yes", False),
        ("你好 世界", "你好世界", False),
        ("", "", True),
        (" ", "yes", False),
        ("😀", "😀", True),
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference) == float(same)
    assert AnswerScorer((reference,)).score(answer, reference)["exact_match"] == float(same)
