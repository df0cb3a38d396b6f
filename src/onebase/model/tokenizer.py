"""Reading a tokenizer from its files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebase.model.chatglm_config import generation, is_chatglm

if TYPE_CHECKING:
    from onebase.model.chatglm_tokenizer import ChatGLMTokenizer


def read_tokenizer(folder: Path, *, gguf_file: str | None = None) -> Any:
    """The tokenizer in `folder`, or in its file `gguf_file`.

    Raises one of `weights.READ_ERRORS` if the files are damaged.
    """
    # Late, as in read_model.
    from transformers import AutoTokenizer

    from onebase.model.chatglm_tokenizer import ChatGLMTokenizer

    if gguf_file is None and is_chatglm(folder):
        return ChatGLMTokenizer(folder / "tokenizer.model", generation=generation(folder) or 2)
    if gguf_file is None and (saved := _saved_chatglm(folder)) is not None:
        return saved
    source = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        return AutoTokenizer.from_pretrained(folder, **source)
    except Exception as error:
        # The tokenizers library raises plain Exception for an inconsistent vocabulary.
        if type(error) is Exception:
            raise ValueError(str(error)) from error
        raise


def _saved_chatglm(folder: Path) -> "ChatGLMTokenizer | None":
    """ChatGLM's tokenizer with a model that full fine-tuning saved in transformers' layout."""
    config, vocabulary = folder / "tokenizer_config.json", folder / "tokenizer.model"
    if not (config.is_file() and vocabulary.is_file()):
        return None
    settings = json.loads(config.read_text(encoding="utf-8"))
    from onebase.model.chatglm_tokenizer import ChatGLMTokenizer

    if settings.get("tokenizer_class") != ChatGLMTokenizer.__name__:
        return None
    return ChatGLMTokenizer(vocabulary, generation=3 if settings.get("generation") == 3 else 2)
