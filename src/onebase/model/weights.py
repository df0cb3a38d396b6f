"""A causal language model read from its files: all of it, or an error."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from onebase.language import say
from onebase.model.chatglm_config import is_chatglm

# What transformers and the readers under it raise for files that are damaged or don't belong.
READ_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,  # a configuration that contradicts itself
)


def read_model(
    folder: Path,
    *,
    dtype: torch.dtype | str,
    gguf_file: str | None = None,
    config: Any = None,
) -> Any:
    """The model in `folder`, or in the GGUF file of that name there; `config` in place of its own.

    transformers fills a weight that the files lack with random numbers; here that is a ValueError.
    Raises one of READ_ERRORS for any other damage.
    """
    # Late: transformers' models take seconds to import, and much that knows of bases needs none.
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from onebase.model.chatglm import read_chatglm

    if gguf_file is None and is_chatglm(folder):
        return read_chatglm(folder, dtype=dtype)
    source: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if config is not None:
        source["config"] = config
    if logging.get_verbosity() >= logging.ERROR:
        logging.disable_progress_bar()  # who wants errors alone wants no bar
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **source
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            say(
                f"it lacks {len(missing)} weights, {missing[0]} among them",
                f"缺少 {len(missing)} 个权重，其中有 {missing[0]}",
            )
        )
    return model
