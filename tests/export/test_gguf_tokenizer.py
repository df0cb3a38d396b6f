"""The tokenizer in a GGUF header; test_llama_cpp.py tests that llama.cpp tokenizes the same way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter, TokenType
from tests.export.conftest import CHATML, bare_ends
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onebase.errors import OnebaseError, UsageError
from onebase.export.gguf_tokenizer import write_tokenizer
from onebase.model.base import Base

MakeTokenizer = Callable[[str], PreTrainedTokenizerFast]


@pytest.fixture
def header(
    make_family: Callable[..., Base], make_tokenizer: MakeTokenizer, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """The header's fields for a tokenizer, or for a kind of one, and the notes on it."""

    def fields(tokenizer: PreTrainedTokenizerFast | str, family: str = "llama") -> dict[str, Any]:
        base = make_family(family)
        made = make_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        base.tokenizer = made
        writer = GGUFWriter(tmp_path / "t.gguf", "llama")
        notes = write_tokenizer(writer, base, bare_ends(base))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        read = GGUFReader(tmp_path / "t.gguf").fields.items()
        found = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in read}
        return {**found, "notes": notes}

    return fields


@pytest.mark.parametrize(
    ("kind", "model", "pre"),
    [
        ("byte-level", "gpt2", "gpt-2"),
        ("digits", "gpt2", "smollm"),
        ("qwen", "gpt2", "qwen2"),
        ("llama3", "gpt2", "llama-bpe"),
        ("sentencepiece", "llama", "default"),
        ("sentencepiece-prefix", "llama", "default"),
    ],
)
def test_the_kinds(kind: str, model: str, pre: str, header: Any) -> None:
    found = header(kind)
    assert (found["model"], found["pre"]) == (model, pre)
    assert (found["bos_token_id"], found["eos_token_id"], found["padding_token_id"]) == (1, 2, 0)
    assert found["add_bos_token"] == kind.startswith("sentencepiece")
    assert found["add_eos_token"] is False
    assert found.get("add_space_prefix") == {
        "sentencepiece": False,
        "sentencepiece-prefix": True,
    }.get(kind)
    assert found["tokenizer.chat_template"] == CHATML
    assert found["notes"] == []


def test_what_each_token_is(header: Any) -> None:
    found = header("qwen")
    kinds = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert len(found["tokens"]) == 640  # the embedding's rows
    assert kinds["<|im_end|>"] == TokenType.CONTROL
    assert kinds["<think>"] == TokenType.USER_DEFINED
    assert kinds["Ġis"] == TokenType.NORMAL
    assert kinds["[PAD639]"] == TokenType.UNUSED
    spoken = header("sentencepiece")
    assert spoken["token_type"][spoken["tokens"].index("<0x0A>")] == TokenType.BYTE


def test_scores_follow_the_merges(header: Any, make_tokenizer: MakeTokenizer) -> None:
    found = header("sentencepiece")
    scores = dict(zip(found["tokens"], found["scores"], strict=True))
    first, second = merges_of(make_tokenizer("sentencepiece"))[:2]
    assert scores["".join(first)] == 0.0
    assert scores["".join(second)] == -1.0
    # A token that no merge produces has the lowest score: minus the number of merges.
    assert scores["<0x0A>"] == -float(len(merges_of(make_tokenizer("sentencepiece"))))
    assert min(scores.values()) == scores["<0x0A>"]


def test_a_token_counts_from_its_first_merge(header: Any) -> None:
    order = ["<unk>", "a", "b", "c", "bc", "abc", "ab"]
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")]
    vocabulary = {token: index for index, token in enumerate(order)}
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    found = header(PreTrainedTokenizerFast(tokenizer_object=made))
    assert found["scores"][:7] == [-4.0, -4.0, -4.0, -4.0, 0.0, -1.0, -2.0]


def merges_of(tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return merges


def test_runs_of_spaces_that_are_added_tokens(header: Any, make_tokenizer: MakeTokenizer) -> None:
    """As in Gemma's own files. llama.cpp would print a user-defined token as it is written."""
    tokenizer = make_tokenizer("sentencepiece")
    tokenizer.add_tokens(["▁▁", "<b>"])
    found = header(tokenizer)
    kinds = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert kinds["▁▁"] == TokenType.NORMAL
    assert kinds["<b>"] == TokenType.USER_DEFINED


def test_a_space_at_the_start_only_is_told(header: Any, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("sentencepiece")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found = header(tokenizer)
    assert found["add_space_prefix"] is True
    (note,) = found["notes"]
    assert "after every control token" in note


def test_a_base_without_bos_has_the_configs(header: Any, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("qwen")
    tokenizer.bos_token = None
    found = header(tokenizer)
    assert found["bos_token_id"] == 1
    assert found["add_bos_token"] is False


def word_level() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))


def lower_case() -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    made.normalizer = normalizers.Lowercase()
    return made


def other_split() -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def other_spaces() -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, [], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (word_level, "WordLevel"),
        (lower_case, "normalizer Lowercase"),
        (other_split, "Whitespace"),
        (other_spaces, "Metaspace"),
    ],
)
def test_what_llama_cpp_lacks_is_refused(
    make: Callable[[], Tokenizer], words: str, header: Any
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        header(PreTrainedTokenizerFast(tokenizer_object=make()))
    assert "--to merged" in caught.value.remedy


def test_more_tokens_than_rows(header: Any, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("byte-level")
    tokenizer.add_tokens([f"<{index}>" for index in range(400)])
    with pytest.raises(OnebaseError, match="640 rows"):
        header(tokenizer)
