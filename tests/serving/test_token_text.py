"""A token's text and bytes as the APIs report them."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from onebase.model.base import Base
from onebase.serving.token_text import TokenText


@pytest.mark.parametrize("text", ["the parcel", " hello, 你好 €", "naïve 🙂\n\t"])
def test_bytes_of_a_texts_tokens_are_the_texts(text: str, make_base: Callable[..., Base]) -> None:
    tokenizer = make_base().tokenizer
    texts = TokenText(tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert b"".join(texts.bytes_of(number) for number in ids) == text.encode()


def test_part_of_a_character(make_base: Callable[..., Base]) -> None:
    tokenizer = make_base().tokenizer
    texts = TokenText(tokenizer)
    first, *_ = tokenizer("你")["input_ids"]
    assert texts.of(first) == "bytes:\\xe4"
    assert texts.of(tokenizer.eos_token_id) == "<|im_end|>"
    assert [texts.of(number) for number in tokenizer(" the")["input_ids"]] == [" ", "the"]


def test_sentencepiece_like_tokens() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "é": 2, "<0xE4>": 3, "a": 4}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    texts = TokenText(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))
    assert [texts.of(number) for number in (1, 2, 3)] == [" the", "é", "bytes:\\xe4"]
