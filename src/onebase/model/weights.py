"""Reading a causal language model from its files, with an error for missing weights."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from onebase.language import say
from onebase.model.chatglm_config import is_chatglm

# The errors that transformers and its readers raise for damaged or unsuitable files.
READ_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,  # an inconsistent configuration
)


def read_model(
    folder: Path,
    *,
    dtype: torch.dtype | str,
    gguf_file: str | None = None,
    config: Any = None,
) -> Any:
    """The model in `folder`, or in its file `gguf_file`; `config` replaces its own configuration.

    transformers fills missing weights with random numbers; here they raise ValueError. Raises one of
    READ_ERRORS for any other damage.
    """
    # Late: transformers' models take seconds to import, and much of the code here needs none.
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from onebase.model.chatglm import read_chatglm

    if gguf_file is None and is_chatglm(folder):
        return read_chatglm(folder, dtype=dtype)
    source: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if config is not None:
        source["config"] = config
    if logging.get_verbosity() >= logging.ERROR:
        logging.disable_progress_bar()  # no progress bar if only errors are wanted
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **source
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            say(
                f"{len(missing)} weights are missing, such as {missing[0]}",
                f"缺少 {len(missing)} 个权重，例如 {missing[0]}",
            )
        )
    return model
