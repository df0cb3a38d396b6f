"""Reading and checking PEFT configurations.

A field of a wrong type, out of range or not supported is refused by its name.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.lora import name_pattern
from onebase.errors import CorruptFileError, OnebaseError
from onebase.language import say

CONFIG = "adapter_config.json"
# The one layer that may be saved whole: the scalar head of a sequence classifier with one label.
HEAD = "score"
_HEADS = {HEAD, "classifier"}  # PEFT lists both, whichever the model has
# Initializations that also change the base's weights, so that the file alone is not the adapter.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LARGEST_CONFIG = 16 << 20  # bytes
_LARGEST_ALPHA = 1e6
_SHORT = Repr()  # shortens long or deep values
_SHORT.maxstring = _SHORT.maxother = 100


@dataclass(frozen=True)
class _Kind:
    """The values that a field may have, in words, and a check for them."""

    en: str
    zh: str
    holds: Callable[[Any], bool]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and 0 < value <= _LARGEST_ALPHA


def _is_rank(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_wholes(value: object) -> bool:
    return isinstance(value, list) and all(_is_whole(item) for item in value)


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _are_names(value: object) -> bool:
    return _are_texts(value) or (isinstance(value, str) and _is_pattern(value))


def _are_patterns(value: object) -> bool:
    patterns = [value] if isinstance(value, str) else value
    return isinstance(patterns, list) and all(
        isinstance(pattern, str) and _is_pattern(_layer_number_regex(pattern))
        for pattern in patterns
    )


def _is_table(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(
        _is_pattern(name_pattern(pattern)) and holds(item) for pattern, item in value.items()
    )


def _layer_number_regex(pattern: str) -> str:
    """The regular expression that finds a layer's number by an entry of layers_pattern."""
    return rf"(?:^|.*?\.){pattern}\.(?P<onebase_layer>\d+)\."


_FLAG = _Kind("true or false", "true 或 false", lambda value: isinstance(value, bool))
_TEXT = _Kind("a text", "文本", lambda value: isinstance(value, str))
_OBJECT = _Kind("an object", "对象", lambda value: isinstance(value, dict))
_COUNT = _Kind("a whole number from 1", "大于等于 1 的整数", _is_rank)
_WHOLE = _Kind("a whole number", "整数", _is_whole)
_NUMBER = _Kind("a number", "数值", _is_number)
_SHARE = _Kind(
    "a number from 0, below 1",
    "大于等于 0 且小于 1 的数值",
    lambda value: _is_number(value) and 0 <= value < 1,
)
_ALPHA = _Kind(
    f"a number above 0, at most {_LARGEST_ALPHA:g}",
    f"大于 0 且不超过 {_LARGEST_ALPHA:g} 的数值",
    _is_alpha,
)
_FLAG_OR_TEXT = _Kind(
    "true, false or a text", "true、false 或文本", lambda value: isinstance(value, bool | str)
)
_NAMES = _Kind(
    "a list of names, or a regular expression",
    "名称列表或正则表达式",
    _are_names,
)
_PATTERNS = _Kind(
    "a regular expression, or a list of them",
    "正则表达式或其列表",
    _are_patterns,
)
_LAYERS = _Kind(
    "a layer's number, or a list of them",
    "层号或层号列表",
    lambda value: _is_whole(value) or _are_wholes(value),
)
_NUMBERS = _Kind("a list of layers' numbers", "层号列表", _are_wholes)
_RANKS = _Kind(
    "a table from regular expressions to whole numbers from 1",
    "以正则表达式为键、值为大于等于 1 的整数的表",
    lambda value: _is_table(value, _is_rank),
)
_ALPHAS = _Kind(
    f"a table from regular expressions to numbers above 0, at most {_LARGEST_ALPHA:g}",
    f"以正则表达式为键、值为大于 0 且不超过 {_LARGEST_ALPHA:g} 的数值的表",
    lambda value: _is_table(value, _is_alpha),
)
# PEFT's fields by type: those that this reader supports, and those without effect on the answers.
# Any other field must be empty, or the adapter would answer differently than when it was saved.
_COMMON = {
    **dict.fromkeys(("peft_type", "task_type", "peft_version"), _TEXT),
    **dict.fromkeys(("base_model_name_or_path", "revision"), _TEXT),
    **dict.fromkeys(("inference_mode", "ensure_weight_tying"), _FLAG),
    "auto_mapping": _OBJECT,
    "exclude_modules": _NAMES,
}
_PROMPT_FIELDS = {
    "num_virtual_tokens": _COUNT,
    **dict.fromkeys(("token_dim", "num_attention_heads", "num_layers"), _COUNT),
    "num_transformer_submodules": _COUNT,
    "tokenizer_name_or_path": _TEXT,
    "tokenizer_kwargs": _OBJECT,
}
_FIELDS: dict[str, dict[str, _Kind]] = {
    "LORA": {
        "r": _COUNT,
        "lora_alpha": _ALPHA,
        "target_modules": _NAMES,
        **dict.fromkeys(("use_rslora", "use_dora"), _FLAG),
        "lora_dropout": _SHARE,
        "rank_pattern": _RANKS,
        "alpha_pattern": _ALPHAS,
        "layers_to_transform": _LAYERS,
        "layers_pattern": _PATTERNS,
        "init_lora_weights": _FLAG_OR_TEXT,
        "megatron_core": _TEXT,
        "qalora_group_size": _WHOLE,
        **dict.fromkeys(("loftq_config", "runtime_config", "eva_config"), _OBJECT),
        "lora_ga_config": _OBJECT,
    },
    "IA3": {
        **dict.fromkeys(("target_modules", "feedforward_modules"), _NAMES),
        "init_ia3_weights": _FLAG,
    },
    "PROMPT_TUNING": _PROMPT_FIELDS
    | dict.fromkeys(("prompt_tuning_init", "prompt_tuning_init_text"), _TEXT),
    "P_TUNING": _PROMPT_FIELDS
    | {
        "encoder_reparameterization_type": _TEXT,
        **dict.fromkeys(("encoder_hidden_size", "encoder_num_layers"), _COUNT),
        "encoder_dropout": _NUMBER,
    },
    # `layers` is not PEFT's: only files of this toolkit have it, under a type that PEFT refuses.
    "PREFIX_TUNING": _PROMPT_FIELDS
    | {"encoder_hidden_size": _COUNT, "prefix_projection": _FLAG, "layers": _NUMBERS},
}
# The supported values of fields that PEFT gives more values.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "task_type": (None, "CAUSAL_LM", "SEQ_CLS"),
    "num_transformer_submodules": (None, 1),
}
_REQUIRED = {"LORA": ("r", "lora_alpha"), "IA3": ()}


def check_fields(folder: AdapterFolder, config: dict[str, Any]) -> None:
    """Raise CorruptFileError for a field with an invalid value, and OnebaseError for a field that is
    not supported.
    """
    kind = str(config.get("peft_type"))
    if kind not in _FIELDS:
        raise OnebaseError(
            say(
                f"{folder.path} holds an adapter of type {kind}, which is not supported.",
                f"{folder.path} 中是不支持的 {kind} 适配器。",
            ),
            say(f"Supported types: {', '.join(_FIELDS)}.", f"支持的类型：{'、'.join(_FIELDS)}。"),
        )
    known = _COMMON | _FIELDS[kind]
    required = _REQUIRED.get(kind, ("num_virtual_tokens",))
    for field, value in config.items():
        if _refused(field, value, known, config):
            raise OnebaseError(
                say(
                    f"The {kind} adapter in {folder.path} uses {field}={_SHORT.repr(value)}, which is not "
                    "supported.",
                    f"{folder.path} 中的 {kind} 适配器使用了不支持的 {field}={_SHORT.repr(value)}。",
                ),
                say(
                    f"Merge it into its base with PEFT, or train it again without {field}.",
                    f"请用 PEFT 合并到基座，或不使用 {field} 重新训练。",
                ),
            )
        if field in known and value is not None and not known[field].holds(value):
            raise _invalid_value(folder, field, value, known[field])
    for field in required:
        if config.get(field) is None:
            raise _invalid_value(folder, field, config.get(field), known[field])


def _refused(field: str, value: Any, known: dict[str, _Kind], config: dict[str, Any]) -> bool:
    """Whether a field requests something that is not supported."""
    if field not in known:
        only_heads = field == "modules_to_save" and _are_texts(value) and set(value) <= _HEADS
        return not only_heads and value not in (None, False, "none", {}, [])
    if field == "init_lora_weights":
        return str(value).lower().startswith(_CHANGES_THE_BASE)
    if field == "loftq_config":
        return bool(value) and config.get("init_lora_weights") == "loftq"
    return field in _SUPPORTED and value not in _SUPPORTED[field]


def _invalid_value(
    folder: AdapterFolder, field: str, value: object, kind: _Kind
) -> CorruptFileError:
    return folder.damaged(
        CONFIG,
        say(
            f"{field} is {_SHORT.repr(value)}, not {kind.en}",
            f"{field} 为 {_SHORT.repr(value)}，应为{kind.zh}",
        ),
        while_imported=say(
            f"Set {field} to the value used in training, or save the adapter again with PEFT.",
            f"请将 {field} 改为训练时的值，或用 PEFT 重新保存该适配器。",
        ),
    )


def targeted(config: dict[str, Any], name: str) -> bool:
    """Whether PEFT gives the linear layer with this full name a delta.

    Decided by target_modules, exclude_modules and, for a list of names, layers_to_transform and
    layers_pattern.
    """
    excluded, targets = config.get("exclude_modules"), config.get("target_modules")
    if excluded and named(excluded, name):
        return False
    if targets is None or targets == "all-linear":
        return True
    if not named(targets, name):
        return False
    numbers = config.get("layers_to_transform")
    if isinstance(targets, str) or name in targets or numbers is None or numbers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(_layer_number_regex(pattern), name)
        if match is not None:
            layer = int(match["onebase_layer"])
            return layer == numbers if isinstance(numbers, int) else layer in numbers
    return False


def named(patterns: str | list[str], name: str) -> bool:
    """Whether a regular expression, or a list of names or ends of names, matches a layer's name."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in patterns)


def read_peft_config(folder: AdapterFolder) -> dict[str, Any]:
    """The adapter_config.json in `folder`. Raises CorruptFileError."""
    file = folder.path / CONFIG
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise folder.damaged(
                CONFIG,
                say(
                    f"it is too large ({file.stat().st_size} bytes)",
                    f"文件过大（{file.stat().st_size} 字节）",
                ),
            )
        text = file.read_text(encoding="utf-8-sig")
        config = json.loads(text, object_pairs_hook=_unique_keys)
        json.dumps(config, ensure_ascii=False).encode()  # a lone surrogate can't be printed
    except OSError as error:
        raise folder.damaged(CONFIG, error.strerror or str(error)) from error
    except RecursionError as error:
        reason = say("its JSON is nested too deeply", "JSON 嵌套过深")
        raise folder.damaged(CONFIG, reason) from error
    except _RepeatedKey as error:
        reason = say(f"the key {error} appears twice", f"键 {error} 出现了两次")
        remedy = say("Remove one of the two.", "请删除其中之一。")
        raise folder.damaged(CONFIG, reason, while_imported=remedy) from error
    except ValueError as error:
        raise folder.damaged(CONFIG, str(error)) from error
    if not isinstance(config, dict):
        raise folder.damaged(CONFIG, say("it is not a JSON object", "它不是 JSON 对象"))
    return config


class _RepeatedKey(Exception):
    """A key that appears twice in a JSON object."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    object_: dict[str, Any] = {}
    for key, value in pairs:
        if key in object_:
            raise _RepeatedKey(repr(key))
        object_[key] = value
    return object_
