"""Converting a GGUF file to a plain Hugging Face folder.

transformers reads the weights. What it loses is restored here: a clean config (a model read from GGUF
is marked as quantized and can't be saved) with all fields of its family (`gguf_config`), the end tokens
of turns, the tokenizer's pre-tokenizer, and float32 numbers of the header as they were written.
"""

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.model.architecture import require_base
from onebase.model.gguf_config import complete, read_header, shortest, unread_tensors
from onebase.model.gguf_rope import UnreadField
from onebase.model.tokenizer import read_tokenizer
from onebase.model.weights import READ_ERRORS, read_model

# Byte-level vocabularies, by `tokenizer.ggml.pre`, whose original tokenizer splits digits before the
# byte-level regular expression. transformers' GGUF reader drops that step, and spaces before a digit
# then become other tokens than in training.
_DIGIT_SPLITTING = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# Llama 3's vocabulary and those derived from it: a word that is itself a token is not merged.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken"}

# The errors that a field of a wrong type causes.
_HEADER_ERRORS = (TypeError, AttributeError, ArithmeticError)


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model in `file` as float32 safetensors, config and tokenizer into `folder`.

    Raises CorruptFileError if `file` is not a GGUF model that transformers can read, or has a field
    that would be lost; UsageError for an unsupported architecture.
    """
    try:
        reader = GGUFReader(file)
        _require_model(reader)
        header = read_header(reader)
        tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
        config = _read_config(file)
        require_base(config, file)
        complete(config, header)
        model = read_model(file.parent, dtype=torch.float32, gguf_file=file.name, config=config)
        for tensor in unread_tensors(model, header):
            raise UnreadField(tensor)
    except UsageError:  # which is a ValueError too
        raise
    except UnreadField as unread:
        raise CorruptFileError(
            say(
                f"{file} has {unread.name}, which onebase can't read from GGUF. Without it the model's "
                "answers would differ.",
                f"{file} 含有 {unread.name}，onebase 无法从 GGUF 读取，而忽略它会使模型的回答不同。",
            ),
            _use_folder(),
        ) from unread
    except (*READ_ERRORS, *_HEADER_ERRORS) as error:
        raise CorruptFileError(
            say(
                f"{file} can't be read as a GGUF model: {error}",
                f"无法读取 GGUF 模型 {file}：{error}",
            ),
            say("Check that the file is complete. ", "请检查文件是否完整。") + _use_folder(),
        ) from error
    _write_weights(model, folder, _ends(reader, len(tokenizer)))
    tokenizer.save_pretrained(folder)
    _restore_pre_tokenizer(folder / "tokenizer.json", _field(reader, "tokenizer.ggml.pre"))


def _use_folder() -> str:
    return say(
        "Give a Hugging Face folder of the same model.",
        "请改用该模型的 Hugging Face 目录。",
    )


def _require_model(reader: GGUFReader) -> None:
    """Raise UnreadField for an adapter, and for one part of a model in several files."""
    kind = _field(reader, "general.type") or "model"
    if kind != "model":
        raise UnreadField("general.type", kind)
    parts = _field(reader, "split.count") or 0
    if parts > 1:
        raise UnreadField("split.count", parts)


def _read_config(file: Path) -> Any:
    # Late, as in read_model.
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def _ends(reader: GGUFReader, vocabulary: int) -> list[int]:
    """The end tokens: of a text, of a turn and of a message."""
    ids = [_field(reader, f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    valid = [token for token in ids if isinstance(token, int) and token < vocabulary]
    return list(dict.fromkeys(valid))


def _write_weights(model: Any, folder: Path, ends: list[int]) -> None:
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    config = type(model.config).from_dict(shortest(settings))
    config.architectures = [type(model).__name__]
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    plain.save_pretrained(folder)


def _restore_pre_tokenizer(tokenizer_json: Path, pre_tokenizer: str | None) -> None:
    """Restore how the original tokenizer splits digits and treats words that are tokens."""
    if pre_tokenizer not in _DIGIT_SPLITTING | _WHOLE_WORDS:
        return
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    if pre_tokenizer in _WHOLE_WORDS:
        content["model"]["ignore_merges"] = True
    else:
        byte_level = content["pre_tokenizer"]
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        }
    tokenizer_json.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
