"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

As in PEFT, only the output of a prompt encoder or of a prefix projection is saved. The encoder
itself is in the training checkpoints.

PEFT has no format for an adapter of several methods, for virtual tokens inside the text, or for a
prefix on some layers. Such an adapter is saved with `peft_type` ONEBASE, which PEFT refuses instead
of misreading it: `parts` holds each method's configuration as PEFT would write it (and the `layers`
of a prefix that is not on all layers), and the weights file names each tensor by its method, a colon
and PEFT's name.

A scalar head is saved as PEFT saves the `score` layer of a sequence classifier with one label.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.ia3 import Ia3
from onebase.adapters.lora import Lora
from onebase.adapters.peft_config import CONFIG, HEAD, check_fields, read_peft_config
from onebase.adapters.peft_tensors import (
    LAYER_PREFIX,
    READERS,
    WEIGHTS,
    read_head,
    read_tensors,
    refuse_unread,
)
from onebase.adapters.vlm_names import (
    has_outer_names,
    inner_config,
    inner_tensors,
    name_for_peft,
)
from onebase.language import say
from onebase.model.base import Base

__all__ = ["WEIGHTS", "load_adapter", "save_adapter"]
_COMBINED = "ONEBASE"
# The methods in a file of several methods, with their PEFT types.
_PARTS = {
    "lora": "LORA",
    "qlora": "LORA",
    "ia3": "IA3",
    "prompt-tuning": "PROMPT_TUNING",
    "p-tuning": "P_TUNING",
    "p-tuning-v2": "PREFIX_TUNING",
}


def save_adapter(adapter: Adapter, folder: Path, base: Base) -> None:
    """Write `adapter` into the existing `folder` as PEFT would."""
    parts = _parts(adapter, base)
    everywhere = adapter.prefix is None or adapter.prefix.everywhere
    if len(parts) == 1 and not adapter.placed and everywhere:
        ((config, tensors),) = parts.values()
    else:
        config = {
            "peft_type": _COMBINED,
            "base_model_name_or_path": str(base.path or base.name),
            "placed": adapter.placed,
            "parts": {name: part for name, (part, _) in parts.items()},
        }
        tensors = {
            f"{name}:{key}": tensor
            for name, (_, part_tensors) in parts.items()
            for key, tensor in part_tensors.items()
        }
    if adapter.head is not None:
        config |= {"task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
        # PEFT wraps the model once more for LoRA and IA3.
        wrapped = adapter.lora is not None or adapter.ia3 is not None
        prefix = LAYER_PREFIX if wrapped else "base_model."
        tensors = {**tensors, f"{prefix}{HEAD}.weight": adapter.head.weight.detach()}
    save_file({name: t.cpu().float().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _parts(adapter: Adapter, base: Base) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """The PEFT configuration and tensors of each method in `adapter`, by the method's name."""
    import peft  # late: the import takes seconds, and only writing needs it

    shape = base.shape
    common = {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": str(base.path or base.name),
    }
    sizes = {"num_layers": shape.layers, "num_transformer_submodules": 1, **common}
    names = adapter.method.split("+")
    parts: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}
    if adapter.lora is not None:
        name = "qlora" if "qlora" in names else "lora"
        config = peft.LoraConfig(**_lora_settings(adapter.lora, base), **common)
        parts[name] = (_plain(config), _lora_tensors(adapter.lora, base))
    if adapter.ia3 is not None:
        inner = sorted({n for n, (_, on_inputs) in adapter.ia3.sites.items() if on_inputs})
        config = peft.IA3Config(
            target_modules=_shortest(list(adapter.ia3.sites), base),
            feedforward_modules=_shortest(inner, base),
            **common,
        )
        parts["ia3"] = (_plain(config), _ia3_tensors(adapter.ia3, base))
    if adapter.prompt is not None:
        rows = adapter.prompt().detach()
        sized = {
            "num_virtual_tokens": len(rows),
            "token_dim": shape.hidden,
            "num_attention_heads": shape.heads,
            **sizes,
        }
        options = adapter.options.get("p-tuning", adapter.options)
        if "p-tuning" in names:
            config = peft.PromptEncoderConfig(
                encoder_reparameterization_type=str(options.get("encoder", "mlp")).upper(),
                encoder_hidden_size=options.get("hidden", shape.hidden),
                **sized,
            )
        else:
            config = peft.PromptTuningConfig(**sized)
        name = "p-tuning" if "p-tuning" in names else "prompt-tuning"
        parts[name] = (_plain(config), {"prompt_embeddings": rows})
    if adapter.prefix is not None:
        rows = adapter.prefix().detach()
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=len(rows),
            token_dim=shape.kv_heads * shape.head_dim,
            num_attention_heads=shape.kv_heads,
            **sizes,
        )
        layers = {} if adapter.prefix.everywhere else {"layers": list(adapter.prefix.layers)}
        parts["p-tuning-v2"] = (_plain(config) | layers, {"prompt_embeddings": rows})
    return parts


def _plain(config: Any) -> dict[str, Any]:
    """A PEFT configuration as plain JSON values."""

    def simple(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=simple))
    return plain


def _shortest(names: list[str], base: Base) -> list[str]:
    """The last parts of `names` if those match no other layer, else the full names.

    In a vision-language model the layers for images may have the same last parts.
    """
    last_parts = {name.rsplit(".", 1)[-1] for name in names}
    matching = {name for name in base.shape.linears if name.rsplit(".", 1)[-1] in last_parts}
    if matching == set(names) and not base.is_text_part:
        return sorted(last_parts)
    return sorted(name_for_peft(base, name) for name in names)


def _lora_settings(lora: Lora, base: Base) -> dict[str, Any]:
    sites = {name_for_peft(base, name): site for name, site in lora.sites.items()}
    ranks = {name: site.rank for name, site in sites.items()}
    alphas = {name: site.scale * site.rank for name, site in sites.items()}
    alphas = {name: int(alpha) if alpha == int(alpha) else alpha for name, alpha in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_dora": lora.dora,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": _shortest(lora.names, base),
    }


def _lora_tensors(lora: Lora, base: Base) -> dict[str, Tensor]:
    tensors = {}
    for at, name in enumerate(lora.names):
        layer = f"{LAYER_PREFIX}{name_for_peft(base, name)}"
        tensors[f"{layer}.lora_A.weight"] = lora.a[at].detach()
        tensors[f"{layer}.lora_B.weight"] = lora.b[at].detach()
        if lora.dora:
            tensors[f"{layer}.lora_magnitude_vector"] = lora.magnitude[at].detach()
    return tensors


def _ia3_tensors(ia3: Ia3, base: Base) -> dict[str, Tensor]:
    return {
        f"{LAYER_PREFIX}{name_for_peft(base, name)}.ia3_l": vector.detach()[None]
        if on_inputs
        else vector.detach()[:, None]
        for vector, (name, (_, on_inputs)) in zip(ia3.vectors, ia3.sites.items(), strict=True)
    }


def load_adapter(folder: Path | AdapterFolder, base: Base) -> Adapter:
    """Read an adapter that this toolkit or PEFT saved; an AdapterFolder says whether it is imported.

    Raises CorruptFileError if a file is missing, damaged, inconsistent with the other or made for a
    base of other sizes, and OnebaseError if it uses an unsupported feature that changes its answers.
    """
    source = folder if isinstance(folder, AdapterFolder) else AdapterFolder(folder)
    config = read_peft_config(source)
    parts = parts_of_config(source, config)
    tensors = read_tensors(source)
    if has_outer_names(base, tensors):
        inner = inner_tensors(tensors)
        if len(inner) < len(tensors):
            reason = say("a layer has tensors under two names", "某一层的张量有两个名称")
            raise source.damaged(WEIGHTS, reason)
        tensors = inner
        config = inner_config(base, config)
        parts = {name: inner_config(base, part) for name, part in parts.items()}
    head = None
    if config.get("task_type") == "SEQ_CLS":
        head = read_head(source, tensors, base)
    if "" in parts:
        adapter = READERS[config["peft_type"]](source, config, tensors, base)
    else:
        adapter = _combined(source, config, parts, tensors, base)
    adapter.head = head
    # On the CPU nothing needs to move, and `to` would visit each matrix: a tenth of the loading time.
    return adapter if base.device.type == "cpu" else adapter.to(base.device)


def parts_of_config(folder: AdapterFolder, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration of each method by its name, or of a single method under "", with its fields
    checked. Raises the errors of load_adapter.
    """
    if config.get("peft_type") != _COMBINED:
        check_fields(folder, config)
        return {"": config}
    parts = config.get("parts")
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(part, dict) for part in parts.values())
    ):
        raise folder.damaged(
            CONFIG, say("parts is not a JSON object of methods", "parts 不是以方法为键的 JSON 对象")
        )
    for name, part in parts.items():
        if part.get("peft_type") != _PARTS.get(name, ""):
            reason = say(
                f"the part {name!r} has the type {part.get('peft_type')!r}",
                f"parts 中 {name!r} 的类型为 {part.get('peft_type')!r}",
            )
            raise folder.damaged(CONFIG, reason)
        check_fields(folder, part)
    return parts


def _combined(
    folder: AdapterFolder,
    config: dict[str, Any],
    parts: dict[str, dict[str, Any]],
    tensors: dict[str, Tensor],
    base: Base,
) -> Adapter:
    """An adapter from a file with `parts`: of several methods, or of one that PEFT has no format for."""
    adapters: dict[str, Adapter] = {}
    modules: dict[str, Any] = {}
    for name, part in parts.items():
        prefix = f"{name}:"
        part_tensors = {
            key.removeprefix(prefix): tensors.pop(key)
            for key in list(tensors)
            if key.startswith(prefix)
        }
        adapters[name] = READERS[part["peft_type"]](folder, part, part_tensors, base)
        for kind in ("lora", "ia3", "prompt", "prefix"):
            if (module := getattr(adapters[name], kind)) is not None:
                if kind in modules:
                    reason = say(f"two parts are of the kind {kind}", f"有两个部分都是 {kind}")
                    raise folder.damaged(CONFIG, reason)
                modules[kind] = module
    refuse_unread(folder, set(tensors))
    placed = config.get("placed", 0)
    tokens = len(modules["prompt"]()) if "prompt" in modules else 0
    if not isinstance(placed, int) or not 0 <= placed <= tokens:
        reason = say(
            f"placed is {placed!r}, but there are {tokens} virtual tokens",
            f"placed 为 {placed!r}，但共有 {tokens} 个虚拟词元",
        )
        raise folder.damaged(CONFIG, reason)
    options = {name: adapter.options for name, adapter in adapters.items()}
    method = "+".join(adapters)
    single = len(adapters) == 1
    return Adapter(method, options[method] if single else options, placed=placed, **modules)
