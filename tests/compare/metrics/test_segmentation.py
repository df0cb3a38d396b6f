"""Words: those of rouge_score in ASCII text, jieba's in Chinese."""

import random
import string

import pytest
from rouge_score.tokenizers import DefaultTokenizer

from onebase.compare.metrics.segmentation import bleu_tokenizer, is_chinese, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's 3.5 mats_are RED!", ["the", "cat", "s", "3", "5", "mats", "are", "red"]),
        ("这款针织连衣裙，优雅气质。", ["这", "款", "针织", "连衣裙", "优雅", "气质"]),
        ("一件T恤和iPhone15手机", ["一件", "t恤", "和", "iphone15", "手机"]),
        ("Café naïve Ünal", ["café", "naïve", "ünal"]),
        ("Cafe\u0301", ["café"]),  # decomposed
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("😀!?，。_ —", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_ascii_text_has_rouge_score_s_own_tokens() -> None:
    chosen = random.Random(0)
    for _ in range(300):
        text = "".join(chosen.choices(string.printable, k=chosen.randrange(60)))
        assert words(text) == DefaultTokenizer().tokenize(text), text


@pytest.mark.parametrize(
    ("texts", "chinese"),
    [
        (["你好"], True),
        (["Hello there"], False),
        (["这款BRAND针织T恤很百搭"], True),
        (["The word 你好 means hello"], False),
        (["OK", "你好世界", "yes"], True),  # two words against four characters
        (["12 34", "你好"], False),  # as many: not more
        ([""], False),
        (["😀。"], False),
    ],
)
def test_a_set_is_chinese_by_its_larger_part(texts: list[str], chinese: bool) -> None:
    assert is_chinese(texts) == chinese
    assert bleu_tokenizer(texts) == ("zh" if chinese else "13a")
