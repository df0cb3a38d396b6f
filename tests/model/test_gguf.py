"""A GGUF file converts to the folder it was made from, or raises an error and leaves no folder."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from onebase.errors import CorruptFileError
from onebase.model.base import Base
from onebase.model.fetch import resolve

WriteGguf = Callable[..., Path]
LeftIn = Callable[[], list[str]]
TOKENS = torch.tensor([[5, 40, 41, 7, 99, 250, 3]])


@pytest.mark.usefixtures("cache")
def test_the_model_is_the_one_written(
    write_gguf: WriteGguf, tiny_folder: Path, tmp_path: Path
) -> None:
    original = Base.load(str(tiny_folder))
    converted = Base.load(str(write_gguf(tmp_path / "tiny.gguf")))
    with torch.no_grad():
        assert torch.equal(converted.model(TOKENS).logits, original.model(TOKENS).logits)
    assert converted.fingerprint == original.fingerprint


@pytest.mark.usefixtures("cache")
def test_the_config_is_plain(write_gguf: WriteGguf, tmp_path: Path) -> None:
    folder = resolve(str(write_gguf(tmp_path / "tiny.gguf")))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-6  # a float32 in the file: 9.99999997e-07
    assert "quantization_config" not in config
    assert "_name_or_path" not in config


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("pre", "expected"), [("smollm", ["a", "Ġ", "1", "2"]), ("gpt-2", ["a", "Ġ12"])]
)
def test_digits_are_split_where_the_original_splits_them(
    write_gguf: WriteGguf, tmp_path: Path, pre: str, expected: list[str]
) -> None:
    folder = resolve(str(write_gguf(tmp_path / "tiny.gguf", pre=pre)))
    layout = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in layout.pre_tokenize_str("a 12")]
    assert pieces == expected


@pytest.mark.usefixtures("cache")
def test_the_chat_template_comes_along(
    write_gguf: WriteGguf, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = resolve(str(write_gguf(tmp_path / "tiny.gguf")))
    original = AutoTokenizer.from_pretrained(tiny_folder)
    converted = AutoTokenizer.from_pretrained(folder)
    assert converted.chat_template == original.chat_template
    text = "the parcel, 12  days ago"
    assert converted.decode(converted(text)["input_ids"]) == text


def test_random_bytes_leave_nothing(tmp_path: Path, left_in: LeftIn) -> None:
    file = tmp_path / "noise.gguf"
    file.write_bytes(random.Random(0).randbytes(4096))
    with pytest.raises(CorruptFileError, match="can't be read as a GGUF model") as caught:
        resolve(str(file))
    assert str(file) in caught.value.message
    assert caught.value.remedy
    assert left_in() == []


@pytest.mark.parametrize("part", [0.0, 0.00001, 0.001, 0.05, 0.2, 0.5, 0.9, 0.9999])
def test_a_cut_off_file_leaves_nothing(
    write_gguf: WriteGguf, tmp_path: Path, left_in: LeftIn, part: float
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CorruptFileError):
        resolve(str(file))
    assert left_in() == []


@pytest.mark.parametrize(
    "leave",
    ["tokenizer", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"],
)
def test_an_incomplete_model_leaves_nothing(
    write_gguf: WriteGguf, tmp_path: Path, left_in: LeftIn, leave: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", leave=leave)
    with pytest.raises(CorruptFileError):
        resolve(str(file))
    assert left_in() == []


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_header_is_a_known_error_or_none(
    write_gguf: WriteGguf, tmp_path: Path, left_in: LeftIn, seed: int
) -> None:
    dice = random.Random(seed)
    content = bytearray(write_gguf(tmp_path / "tiny.gguf").read_bytes())
    for _ in range(8):
        content[dice.randrange(1024)] = dice.randrange(256)
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    try:
        resolve(str(file))
    except CorruptFileError:
        assert left_in() == []
