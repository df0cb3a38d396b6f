"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT keeps only the output of a prompt encoder or of a prefix projection; so does this file. The
encoder itself lives in training checkpoints.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.lora import Lora
from onebase.adapters.prefix import DeepPrefix
from onebase.adapters.prompt import PromptEmbedding
from onebase.errors import CorruptFileError, OnebaseError
from onebase.language import say
from onebase.model.base import Base, ModelShape

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_LORA_PREFIX = "base_model.model."

# LoraConfig's fields that change the result, with the values this reader gives them.
_LORA_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
}


def save_adapter(adapter: Adapter, folder: Path, base: Base) -> None:
    """Write `adapter` into the existing `folder` as PEFT would."""
    tensors: dict[str, Tensor] = {}
    config: Any
    common = {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": str(base.path or base.name),
    }
    shape = base.shape
    if adapter.lora is not None:
        config, tensors = _lora_files(adapter.lora, common)
    elif adapter.prefix is not None:
        rows = adapter.prefix().detach()
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=len(rows),
            token_dim=shape.kv_heads * shape.head_dim,
            num_layers=shape.layers,
            num_attention_heads=shape.kv_heads,
            num_transformer_submodules=1,
            **common,
        )
        tensors["prompt_embeddings"] = rows
    else:
        assert adapter.prompt is not None
        rows = adapter.prompt().detach()
        sizes = {
            "num_virtual_tokens": len(rows),
            "token_dim": shape.hidden,
            "num_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_transformer_submodules": 1,
        }
        if adapter.method == "p-tuning":
            config = peft.PromptEncoderConfig(
                encoder_reparameterization_type=str(adapter.options.get("encoder", "mlp")).upper(),
                encoder_hidden_size=adapter.options.get("hidden", shape.hidden),
                **sizes,
                **common,
            )
        else:
            config = peft.PromptTuningConfig(**sizes, **common)
        tensors["prompt_embeddings"] = rows
    save_file({name: t.cpu().float().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    config.save_pretrained(str(folder))


def _lora_files(lora: Lora, common: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    tensors = {}
    for name, delta in lora.deltas().items():
        tensors[f"{_LORA_PREFIX}{name}.lora_A.weight"] = delta.a.detach()
        tensors[f"{_LORA_PREFIX}{name}.lora_B.weight"] = delta.b.detach()
    rank = lora.a[0].shape[0]
    alpha = lora.scale * rank
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in lora.names}),
        **common,
    )
    return config, tensors


def load_adapter(folder: Path, base: Base) -> Adapter:
    """Read an adapter that this toolkit or PEFT saved.

    Raises CorruptFileError when a file is missing, damaged or of another base's sizes, and
    OnebaseError when it uses a feature that would change its answers and is not supported.
    """
    config = read_peft_config(folder)
    kind = str(config.get("peft_type"))
    if kind not in _READERS:
        raise OnebaseError(
            say(f"{folder} holds a {kind} adapter.", f"{folder} 中是 {kind} 适配器。"),
            say(f"Supported: {', '.join(_READERS)}.", f"支持：{'、'.join(_READERS)}。"),
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / WEIGHTS, str(error)) from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _damaged(folder / WEIGHTS, f"{name} is not finite")
    return _READERS[kind](folder, config, tensors, base.shape).to(base.device)


def read_peft_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json in `folder`. Raises CorruptFileError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder / CONFIG, str(error)) from error
    if not isinstance(config, dict):
        raise _damaged(folder / CONFIG, "not a JSON object")
    return config


def _read_lora(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shape: ModelShape
) -> Adapter:
    for field, harmless in _LORA_UNSUPPORTED.items():
        if config.get(field) not in harmless:
            raise OnebaseError(
                say(
                    f"The LoRA in {folder} uses {field}={config[field]!r}, which is not supported.",
                    f"{folder} 中的 LoRA 使用了不支持的 {field}={config[field]!r}。",
                ),
                say(
                    f"Merge it into its base with PEFT, or train it without {field}.",
                    f"请用 PEFT 合并到基座，或不使用 {field} 重新训练。",
                ),
            )
    rank = int(_number(folder, config, "r"))
    alpha = _number(folder, config, "lora_alpha")
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    names = {}
    suffix = ".lora_A.weight"
    for key in tensors:
        if key.endswith(suffix):
            name = key.removeprefix(_LORA_PREFIX).removesuffix(suffix)
            if name not in shape.linears:
                raise _damaged(folder / WEIGHTS, f"the base has no linear layer {name}")
            names[name] = shape.linears[name]
    if not names:
        raise _damaged(folder / WEIGHTS, "no lora_A matrix in it")
    lora = Lora(names, rank=rank, scale=scale, dropout=float(config.get("lora_dropout") or 0.0))
    read = set()
    for index, name in enumerate(lora.names):
        for part, parameters in (("A", lora.a), ("B", lora.b)):
            key = f"{_LORA_PREFIX}{name}.lora_{part}.weight"
            read.add(key)
            _copy(folder, tensors, key, parameters[index])
    if unread := set(tensors) - read:  # such as a delta on the embedding
        raise OnebaseError(
            say(
                f"The LoRA in {folder} also changes {min(unread)}, which is not supported.",
                f"{folder} 中的 LoRA 还修改了 {min(unread)}，不支持。",
            ),
            say(
                "Merge it into its base with PEFT, or train it on the linear layers alone.",
                "请用 PEFT 合并到基座，或只在线性层上重新训练。",
            ),
        )
    wanted = config.get("target_modules") or []
    target = wanted if isinstance(wanted, str) else ",".join(wanted)
    return Adapter("lora", {"rank": rank, "alpha": alpha, "target": target}, lora=lora)


def _read_prompt(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shape: ModelShape
) -> Adapter:
    tokens = int(_number(folder, config, "num_virtual_tokens"))
    prompt = PromptEmbedding(torch.zeros(tokens, shape.hidden))
    _copy(folder, tensors, "prompt_embeddings", prompt.embedding)
    method = "p-tuning" if config["peft_type"] == "P_TUNING" else "prompt-tuning"
    return Adapter(method, {"virtual_tokens": tokens}, prompt=prompt)


def _read_prefix(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shape: ModelShape
) -> Adapter:
    tokens = int(_number(folder, config, "num_virtual_tokens"))
    prefix = DeepPrefix(shape, tokens, projection=None, start=None)
    _copy(folder, tensors, "prompt_embeddings", prefix.embedding.weight)
    return Adapter("p-tuning-v2", {"virtual_tokens": tokens}, prefix=prefix)


def _number(folder: Path, config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _damaged(folder / CONFIG, f"{key} is {value!r}, not a number above 0")
    return value


def _copy(folder: Path, tensors: dict[str, Tensor], key: str, parameter: Tensor) -> None:
    if key not in tensors:
        raise _damaged(folder / WEIGHTS, f"{key} is missing")
    if tensors[key].shape != parameter.shape:
        raise _damaged(
            folder / WEIGHTS,
            f"{key} is {tuple(tensors[key].shape)}, this base needs {tuple(parameter.shape)}",
        )
    parameter.data.copy_(tensors[key])


def _damaged(file: Path, reason: str) -> CorruptFileError:
    return CorruptFileError(
        say(f"{file} can't be used: {reason}.", f"无法使用 {file}：{reason}。"),
        say(
            "Train the task again, roll back to an earlier version, or import the adapter anew.",
            "请重新训练该任务、回退到更早的版本，或重新导入适配器。",
        ),
    )


_READERS: dict[str, Callable[[Path, dict[str, Any], dict[str, Tensor], ModelShape], Adapter]] = {
    "LORA": _read_lora,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}
