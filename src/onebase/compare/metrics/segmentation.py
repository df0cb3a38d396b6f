"""The words of a text: Chinese by a dictionary, other text at anything but letters and digits."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

import rjieba

# Letters and digits side by side; a Chinese word may hold both kinds (T恤).
_RUN = re.compile(r"[^\W_]+")
# Han characters and kana, which stand without spaces, for a regular expression's brackets.
CHINESE = "〇\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(f"[{CHINESE}]")


def words(text: str) -> list[str]:
    """The lower-case words of a text, in order, without punctuation and symbols.

    A run of letters and digits is a word, so that ASCII text has the tokens of rouge_score's own
    tokenizer. A run with Chinese characters is cut into words by jieba's dictionary and its hidden Markov
    model (rjieba). The text is brought to Unicode's form C first.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFC", text)):
        found += rjieba.cut(run) if _CHINESE.search(run) else [run]
    return [word.lower() for word in found]


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether texts, taken together, have more Chinese characters than words of other scripts."""
    balance = 0
    for text in texts:
        balance += len(_CHINESE.findall(text)) - len(_RUN.findall(_CHINESE.sub(" ", text)))
    return balance > 0


def bleu_tokenizer(references: Iterable[str]) -> Literal["zh", "13a"]:
    """The tokenizer of sacrebleu for a set of references: `zh` (single characters) where they are Chinese,
    else `13a`, its default. It is chosen for a whole set, so that all its scores compare.
    """
    return "zh" if is_chinese(references) else "13a"
