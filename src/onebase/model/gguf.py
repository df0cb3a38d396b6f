"""GGUF files as bases: one conversion to a plain Hugging Face folder.

transformers reads the weights. What it loses on the way is put back here: a clean config (a
model read from GGUF is tagged as quantized and refuses to be saved), the tokenizer's
pre-tokenizer, and the rounding of float32 numbers in the header.
"""

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from onebase.errors import CorruptFileError
from onebase.language import say
from onebase.model.tokenizer import read_tokenizer
from onebase.model.weights import READ_ERRORS, read_model

# Byte-level vocabularies whose original tokenizer splits every digit before the byte-level
# regular expression, by `tokenizer.ggml.pre`. transformers' GGUF reader drops that step, and
# runs of spaces before a digit then come out as other tokens than the model was trained on.
_DIGIT_SPLITTING = {"smollm", "starcoder", "refact", "command-r", "codeshell"}


def convert_gguf(file: Path, folder: Path) -> None:
    """Write `file`'s model as float32 safetensors, config and tokenizer into `folder`.

    Raises CorruptFileError when `file` is not a GGUF model that transformers can read.
    """
    try:
        pre_tokenizer = _text_field(GGUFReader(file), "tokenizer.ggml.pre")
        tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
        model = read_model(file.parent, dtype=torch.float32, gguf_file=file.name)
    except READ_ERRORS as error:
        raise CorruptFileError(
            say(
                f"{file} can't be read as a GGUF model: {error}",
                f"无法读取 GGUF 模型 {file}：{error}",
            ),
            say(
                "Check the download, or give a Hugging Face folder of the same model.",
                "请检查文件是否完整，或改用该模型的 Hugging Face 目录。",
            ),
        ) from error
    _write_weights(model, folder)
    tokenizer.save_pretrained(folder)
    if pre_tokenizer in _DIGIT_SPLITTING:
        _restore_digit_splitting(folder / "tokenizer.json")


def _write_weights(model: Any, folder: Path) -> None:
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    config = type(model.config).from_dict(
        {key: _shortest(value) for key, value in settings.items()}
    )
    config.architectures = [type(model).__name__]
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)


def _shortest(value: Any) -> Any:
    """A float32 read into a double (9.99999974e-06), as it was written (1e-05)."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _restore_digit_splitting(tokenizer_json: Path) -> None:
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    byte_level = content["pre_tokenizer"]
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    tokenizer_json.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _text_field(reader: GGUFReader, name: str) -> str | None:
    field = reader.get_field(name)
    return None if field is None else str(field.contents())
