"""PEFT's configurations: reading one, and which of its fields are honoured; any other is refused by its
name.
"""

import json
from pathlib import Path
from typing import Any

from onebase.errors import CorruptFileError, OnebaseError
from onebase.language import say

CONFIG = "adapter_config.json"
# PEFT's fields by type: those that this reader honours or that say nothing about the answers. Any
# other field must be empty, or the adapter would be another than the one that was saved.
_COMMON = {
    *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "auto_mapping", "exclude_modules", "ensure_weight_tying"),
}
_PROMPT_FIELDS = {
    *("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"),
    *("num_transformer_submodules", "tokenizer_name_or_path", "tokenizer_kwargs"),
}
_FIELDS = {
    "LORA": {
        *("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "lora_dropout"),
        *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "megatron_core", "qalora_group_size", "loftq_config"),
        *("runtime_config", "eva_config", "lora_ga_config"),
    },
    "IA3": {"target_modules", "feedforward_modules", "init_ia3_weights"},
    "PROMPT_TUNING": _PROMPT_FIELDS | {"prompt_tuning_init", "prompt_tuning_init_text"},
    "P_TUNING": _PROMPT_FIELDS
    | {
        *("encoder_reparameterization_type", "encoder_hidden_size"),
        *("encoder_num_layers", "encoder_dropout"),
    },
    # `layers` is not PEFT's: files of this toolkit have it, of a type that PEFT refuses.
    "PREFIX_TUNING": _PROMPT_FIELDS | {"encoder_hidden_size", "prefix_projection", "layers"},
}
# The one layer that may be saved whole: the scalar head of a sequence classifier with one label.
HEAD = "score"
_HEADS = {HEAD, "classifier"}  # PEFT names both of them, whatever the model has
# Initialisations that change the base's weights too: the file alone is not the adapter.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_fields(folder: Path, config: dict[str, Any]) -> None:
    """Raise OnebaseError where a configuration in `folder` says something that can't be honoured."""
    kind = str(config.get("peft_type"))
    if kind not in _FIELDS:
        raise OnebaseError(
            say(f"{folder} holds a {kind} adapter.", f"{folder} 中是 {kind} 适配器。"),
            say(f"Supported: {', '.join(_FIELDS)}.", f"支持：{'、'.join(_FIELDS)}。"),
        )
    for field, value in config.items():
        refused = field not in _COMMON | _FIELDS[kind] and value not in (
            None,
            False,
            "none",
            {},
            [],
        )
        if field == "modules_to_save" and isinstance(value, list):
            refused = not set(value) <= _HEADS
        refused |= field == "task_type" and value not in (None, "CAUSAL_LM", "SEQ_CLS")
        refused |= field == "num_transformer_submodules" and value not in (None, 1)
        refused |= field == "init_lora_weights" and str(value).lower().startswith(_CHANGES_THE_BASE)
        if field == "loftq_config":
            refused |= bool(value) and config.get("init_lora_weights") == "loftq"
        if refused:
            raise OnebaseError(
                say(
                    f"The {kind} adapter in {folder} uses {field}={value!r}, which is not supported.",
                    f"{folder} 中的 {kind} 适配器使用了不支持的 {field}={value!r}。",
                ),
                say(
                    f"Merge it into its base with PEFT, or train it without {field}.",
                    f"请用 PEFT 合并到基座，或不使用 {field} 重新训练。",
                ),
            )


def read_peft_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json in `folder`. Raises CorruptFileError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(folder / CONFIG, str(error)) from error
    if not isinstance(config, dict):
        raise damaged(folder / CONFIG, "not a JSON object")
    return config


def damaged(file: Path, reason: str) -> CorruptFileError:
    """The error for an adapter's file that can't be used."""
    return CorruptFileError(
        say(f"{file} can't be used: {reason}.", f"无法使用 {file}：{reason}。"),
        say(
            "Train the task again, roll back to an earlier version, or import the adapter anew.",
            "请重新训练该任务、回退到更早的版本，或重新导入适配器。",
        ),
    )
