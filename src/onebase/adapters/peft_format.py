"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT keeps only the output of a prompt encoder or of a prefix projection; so does this file. The
encoder itself lives in training checkpoints.

PEFT has no file for an adapter of several methods, nor for virtual tokens placed inside the text,
nor for a prefix on some layers. Theirs has `peft_type` ONEBASE, which PEFT refuses rather than
misreads: under `parts`, each method's configuration as PEFT would write it (and the prefix's
`layers`, where those are not all), and in the weights file each method's tensors behind its name
and a colon.

A scalar head is PEFT's `score`, saved whole, of a sequence classifier with one label.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.head import ScalarHead
from onebase.adapters.ia3 import Ia3
from onebase.adapters.lora import Lora, Site, matches, scale_of
from onebase.adapters.peft_config import CONFIG, HEAD, check_fields, damaged, read_peft_config
from onebase.adapters.prefix import DeepPrefix
from onebase.adapters.prompt import PromptEmbedding
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.precision import weight_of

WEIGHTS = "adapter_model.safetensors"
_LAYER_PREFIX = "base_model.model."
_SEVERAL = "ONEBASE"


def save_adapter(adapter: Adapter, folder: Path, base: Base) -> None:
    """Write `adapter` into the existing `folder` as PEFT would."""
    parts = _parts(adapter, base)
    everywhere = adapter.prefix is None or adapter.prefix.everywhere
    if len(parts) == 1 and not adapter.placed and everywhere:
        ((config, tensors),) = parts.values()
    else:
        config = {
            "peft_type": _SEVERAL,
            "base_model_name_or_path": str(base.path or base.name),
            "placed": adapter.placed,
            "parts": {name: part for name, (part, _) in parts.items()},
        }
        tensors = {
            f"{name}:{key}": tensor
            for name, (_, own) in parts.items()
            for key, tensor in own.items()
        }
    if adapter.head is not None:
        config |= {"task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
        within = adapter.lora is not None or adapter.ia3 is not None  # PEFT's wrappers nest so
        before = _LAYER_PREFIX if within else "base_model."
        tensors = {**tensors, f"{before}{HEAD}.weight": adapter.head.weight.detach()}
    save_file({name: t.cpu().float().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _parts(adapter: Adapter, base: Base) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """PEFT's configuration and tensors of each method in `adapter`, by the method's name."""
    import peft  # late: it takes seconds, and only writing needs it

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
        config = peft.LoraConfig(**_lora_settings(adapter.lora, shape.linears), **common)
        parts[name] = (_plain(config), _lora_tensors(adapter.lora))
    if adapter.ia3 is not None:
        inner = sorted({n for n, (_, on_inputs) in adapter.ia3.sites.items() if on_inputs})
        config = peft.IA3Config(
            target_modules=_shortest(list(adapter.ia3.sites), shape.linears),
            feedforward_modules=_shortest(inner, shape.linears),
            **common,
        )
        parts["ia3"] = (_plain(config), _ia3_tensors(adapter.ia3))
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
        some = {} if adapter.prefix.everywhere else {"layers": list(adapter.prefix.layers)}
        parts["p-tuning-v2"] = (_plain(config) | some, {"prompt_embeddings": rows})
    return parts


def _plain(config: Any) -> dict[str, Any]:
    """A PEFT configuration as JSON holds it."""

    def simple(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=simple))
    return plain


def _shortest(names: list[str], linears: Mapping[str, Any]) -> list[str]:
    """`names` by their last parts where those mean no other layer, else in full."""
    last = {name.rsplit(".", 1)[-1] for name in names}
    meant = {name for name in linears if name.rsplit(".", 1)[-1] in last}
    return sorted(last if meant == set(names) else names)


def _lora_settings(lora: Lora, linears: Mapping[str, Any]) -> dict[str, Any]:
    ranks = {name: site.rank for name, site in lora.sites.items()}
    alphas = {name: _whole(site.scale * site.rank) for name, site in lora.sites.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_dora": lora.dora,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": _shortest(lora.names, linears),
    }


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _lora_tensors(lora: Lora) -> dict[str, Tensor]:
    tensors = {}
    for at, name in enumerate(lora.names):
        tensors[f"{_LAYER_PREFIX}{name}.lora_A.weight"] = lora.a[at].detach()
        tensors[f"{_LAYER_PREFIX}{name}.lora_B.weight"] = lora.b[at].detach()
        if lora.dora:
            tensors[f"{_LAYER_PREFIX}{name}.lora_magnitude_vector"] = lora.magnitude[at].detach()
    return tensors


def _ia3_tensors(ia3: Ia3) -> dict[str, Tensor]:
    return {
        f"{_LAYER_PREFIX}{name}.ia3_l": vector.detach()[None]
        if on_inputs
        else vector.detach()[:, None]
        for vector, (name, (_, on_inputs)) in zip(ia3.vectors, ia3.sites.items(), strict=True)
    }


def load_adapter(folder: Path, base: Base) -> Adapter:
    """Read an adapter that this toolkit or PEFT saved.

    Raises CorruptFileError when a file is missing, damaged or of another base's sizes, and
    OnebaseError when it uses a feature that would change its answers and is not supported.
    """
    config = read_peft_config(folder)
    several = config.get("peft_type") == _SEVERAL
    parts = config.get("parts") if several else {"": config}
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise damaged(folder / CONFIG, f"parts is {parts!r}")
    for part in parts.values():
        check_fields(folder, part)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise damaged(folder / WEIGHTS, str(error)) from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise damaged(folder / WEIGHTS, f"{name} is not finite")
    head = _read_head(folder, tensors, base)
    if head is None and config.get("task_type") == "SEQ_CLS":
        raise damaged(folder / WEIGHTS, f"task_type is SEQ_CLS, but there is no {HEAD}.weight")
    read = []
    for name, part in parts.items():
        before = f"{name}:" if several else ""
        own = {k.removeprefix(before): t for k, t in tensors.items() if k.startswith(before)}
        read.append(_READERS[str(part["peft_type"])](folder, part, own, base))
    adapter = read[0]
    if several:
        adapter = _together(folder, config, dict(zip(parts, read, strict=True)))
    adapter.head = head
    return adapter.to(base.device)


def _read_head(folder: Path, tensors: dict[str, Tensor], base: Base) -> ScalarHead | None:
    """The scalar head among `tensors`, which is taken out of them."""
    for key in [key for key in tensors if key.endswith(f".{HEAD}.weight")]:
        head = ScalarHead(base.shape.hidden)
        _copy(folder, tensors, key, head.weight)
        del tensors[key]
        return head
    return None


def _together(folder: Path, config: dict[str, Any], read: dict[str, Adapter]) -> Adapter:
    """One adapter of the parts that `read` has by their methods' names."""
    held: dict[str, Any] = {}
    for adapter in read.values():
        for part in ("lora", "ia3", "prompt", "prefix"):
            if (module := getattr(adapter, part)) is not None:
                if part in held:
                    raise damaged(folder / CONFIG, f"two parts are a {part}")
                held[part] = module
    placed = config.get("placed", 0)
    tokens = len(held["prompt"]()) if "prompt" in held else 0
    if not isinstance(placed, int) or not 0 <= placed <= tokens:
        raise damaged(folder / CONFIG, f"placed is {placed!r} of {tokens} virtual tokens")
    options = {name: adapter.options for name, adapter in read.items()}
    method = "+".join(read)
    return Adapter(method, options[method] if len(read) == 1 else options, placed=placed, **held)


def _read_lora(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    alpha = _number(folder, config, "lora_alpha")
    alphas = config.get("alpha_pattern") or {}
    rslora = bool(config.get("use_rslora"))
    sites = {}
    suffix = ".lora_A.weight"
    for key, tensor in tensors.items():
        if key.endswith(suffix):
            name = _layer(folder, base, key, suffix)
            own = next((a for pattern, a in alphas.items() if matches(pattern, name)), alpha)
            own_rank = tensor.shape[0]
            sites[name] = Site(
                *base.shape.linears[name], own_rank, scale_of(own, own_rank, rslora=rslora)
            )
    if not sites:
        raise damaged(folder / WEIGHTS, "no lora_A matrix in it")

    def frozen(name: str) -> Tensor:
        return weight_of(base.model.get_submodule(name))

    dora = bool(config.get("use_dora"))
    dropout = float(config.get("lora_dropout") or 0.0)
    lora = Lora(sites, dropout=dropout, weight_of=frozen if dora else None)
    read = set()
    for index, name in enumerate(lora.names):
        files = [(".lora_A.weight", lora.a[index]), (".lora_B.weight", lora.b[index])]
        if dora:
            files.append((".lora_magnitude_vector", lora.magnitude[index]))
        for end, parameter in files:
            key = f"{_LAYER_PREFIX}{name}{end}"
            read.add(key)
            _copy(folder, tensors, key, parameter)
    _refuse_unread(folder, set(tensors) - read)
    wanted = config.get("target_modules") or []
    target = wanted if isinstance(wanted, str) else ",".join(wanted)
    rank = Counter(site.rank for site in sites.values()).most_common(1)[0][0]
    return Adapter("lora", {"rank": rank, "alpha": alpha, "target": target}, lora=lora)


def _read_ia3(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    sites = {}
    for key, tensor in tensors.items():
        if key.endswith(".ia3_l"):
            name = _layer(folder, base, key, ".ia3_l")
            sites[name] = (tensor.numel(), tensor.shape[0] == 1 and tensor.numel() > 1)
            if sites[name][0] != base.shape.linears[name][not sites[name][1]]:
                raise damaged(folder / WEIGHTS, f"{key} is {tuple(tensor.shape)}")
    if not sites:
        raise damaged(folder / WEIGHTS, "no ia3_l vector in it")
    ia3 = Ia3(sites)
    for vector, name in zip(ia3.vectors, sites, strict=True):
        vector.data.copy_(tensors[f"{_LAYER_PREFIX}{name}.ia3_l"].flatten())
    _refuse_unread(folder, {key for key in tensors if not key.endswith(".ia3_l")})
    return Adapter("ia3", {}, ia3=ia3)


def _layer(folder: Path, base: Base, key: str, suffix: str) -> str:
    """The base's linear layer that a tensor's name speaks of."""
    name = key.removeprefix(_LAYER_PREFIX).removesuffix(suffix)
    if name not in base.shape.linears:
        raise damaged(folder / WEIGHTS, f"the base has no linear layer {name}")
    return name


def _refuse_unread(folder: Path, unread: set[str]) -> None:
    if unread:  # such as a delta on the embedding
        raise OnebaseError(
            say(
                f"The adapter in {folder} also changes {min(unread)}, which is not supported.",
                f"{folder} 中的适配器还修改了 {min(unread)}，不支持。",
            ),
            say(
                "Merge it into its base with PEFT, or train it on the linear layers alone.",
                "请用 PEFT 合并到基座，或只在线性层上重新训练。",
            ),
        )


def _read_prompt(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    tokens = int(_number(folder, config, "num_virtual_tokens"))
    prompt = PromptEmbedding(torch.zeros(tokens, base.shape.hidden))
    _copy(folder, tensors, "prompt_embeddings", prompt.embedding)
    method = "p-tuning" if config["peft_type"] == "P_TUNING" else "prompt-tuning"
    return Adapter(method, {"virtual_tokens": tokens}, prompt=prompt)


def _read_prefix(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    tokens = int(_number(folder, config, "num_virtual_tokens"))
    options: dict[str, Any] = {"virtual_tokens": tokens}
    layers = None
    if (wanted := config.get("layers")) is not None:
        every = range(base.shape.layers)
        layers = [layer for layer in every if isinstance(wanted, list) and layer in wanted]
        if not layers or layers != wanted:
            raise damaged(folder / CONFIG, f"layers is {wanted!r} of {len(every)}")
        options["layers"] = ",".join(map(str, layers))
    prefix = DeepPrefix(base.shape, tokens, projection=None, start=None, layers=layers)
    _copy(folder, tensors, "prompt_embeddings", prefix.embedding.weight)
    return Adapter("p-tuning-v2", options, prefix=prefix)


def _number(folder: Path, config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise damaged(folder / CONFIG, f"{key} is {value!r}, not a number above 0")
    return value


def _copy(folder: Path, tensors: dict[str, Tensor], key: str, parameter: Tensor) -> None:
    if key not in tensors:
        raise damaged(folder / WEIGHTS, f"{key} is missing")
    if tensors[key].shape != parameter.shape:
        raise damaged(
            folder / WEIGHTS,
            f"{key} is {tuple(tensors[key].shape)}, this base needs {tuple(parameter.shape)}",
        )
    parameter.data.copy_(tensors[key])


_READERS: dict[str, Callable[[Path, dict[str, Any], dict[str, Tensor], Base], Adapter]] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}
