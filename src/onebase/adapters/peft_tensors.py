"""Reading an adapter's tensors by PEFT's names into each method's module.

Each tensor is first checked against the configuration and the base. A name is accepted if PEFT 0.21
accepts it: with the name of the adapter, `.default`, or without. PEFT silently ignores any other
name; here it is refused.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.adapter_folder import AdapterFolder, not_floating_point, shape_mismatch
from onebase.adapters.ia3 import Ia3
from onebase.adapters.lora import Lora, Site, matches, scale_of
from onebase.adapters.peft_config import CONFIG, HEAD, named, targeted
from onebase.adapters.prefix import DeepPrefix
from onebase.adapters.prompt import PromptEmbedding
from onebase.adapters.scalar_head import ScalarHead
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.precision import weight_of

WEIGHTS = "adapter_model.safetensors"
LAYER_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE, _IA3 = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".ia3_l"
_PROMPT = "prompt_embeddings"
# Other names that PEFT accepts, and the name used here.
_NAME_VARIANTS = (
    (re.compile(r"\.(lora_[AB])\.default\.weight$"), r".\1.weight"),
    (re.compile(r"\.lora_magnitude_vector(\.default)?\.weight$"), _MAGNITUDE),
    (re.compile(r"\.ia3_l\.default$"), _IA3),
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(folder: AdapterFolder) -> dict[str, Tensor]:
    """Every tensor of the weights file in fp32, by its name without `.default`.

    Raises CorruptFileError for a file that can't be read, a tensor that is not of finite floating
    point numbers, and a tensor under two names.
    """
    try:
        # From bytes: several times as fast as `load_file` for many small tensors.
        stored = load((folder.path / WEIGHTS).read_bytes())
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise folder.damaged(WEIGHTS, reason) from error
    except KeyError as error:  # a dtype that safetensors has and torch does not
        kind = error.args[0]
        reason = say(f"it holds {kind}, not floating point", f"其中有 {kind}，而非浮点数")
        raise folder.damaged(WEIGHTS, reason) from error
    tensors: dict[str, Tensor] = {}
    for key, tensor in sorted(stored.items()):
        name = key
        for pattern, replacement in _NAME_VARIANTS:
            name = pattern.sub(replacement, name)
        if name in tensors:
            reason = say(f"it has {name} twice, once as {key}", f"{name} 出现两次，其一为 {key}")
            raise folder.damaged(WEIGHTS, reason)
        if tensor.dtype not in _FLOATS:
            raise folder.damaged(WEIGHTS, not_floating_point(key, tensor.dtype))
        tensors[name] = tensor.float()
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise folder.damaged(WEIGHTS, say(f"{name} is not finite", f"{name} 含有非有限值"))
    return tensors


def _finite(tensor: Tensor) -> bool:
    # The sum is faster, and finite only if all numbers are.
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def read_head(folder: AdapterFolder, tensors: dict[str, Tensor], base: Base) -> ScalarHead:
    """The scalar head of a sequence classifier; removes its tensor from `tensors`.

    Raises CorruptFileError if there is none, and OnebaseError for a head with several labels.
    """
    for key in (f"{LAYER_PREFIX}{HEAD}.weight", f"base_model.{HEAD}.weight"):
        if key not in tensors:
            continue
        labels = tensors[key].shape[0] if tensors[key].dim() == 2 else 1
        if labels > 1:
            raise OnebaseError(
                say(
                    f"The adapter in {folder.path} is a classifier with {labels} labels in its {HEAD} "
                    "layer. Only one label, the score of a reward model, is supported.",
                    f"{folder.path} 中的适配器是分类器，其 {HEAD} 层有 {labels} 个标签。"
                    "仅支持单标签，即奖励模型的分数。",
                ),
                say(
                    "Train a classification task on its data (rows with text and label). onebase "
                    "classifies by the likelihood of each label's text.",
                    "请用其数据（含 text 与 label 的行）训练分类任务，onebase 按各标签文本的似然分类。",
                ),
            )
        head = ScalarHead(base.shape.hidden)
        _fill(folder, tensors, key, head.weight)
        del tensors[key]
        return head
    raise folder.damaged(
        WEIGHTS,
        say(
            f"task_type is SEQ_CLS, but there is no {HEAD}.weight",
            f"task_type 为 SEQ_CLS，但缺少 {HEAD}.weight",
        ),
    )


def _read_lora(
    folder: AdapterFolder, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    dora = bool(config.get("use_dora"))
    ends = (_A, _B, _MAGNITUDE) if dora else (_A, _B)
    names = _layers_with_tensors(folder, config, tensors, base, ends)
    sites = {name: _site(folder, config, tensors, base, name) for name in names}

    def frozen(name: str) -> Tensor:
        return weight_of(base.model.get_submodule(name))

    dropout = float(config.get("lora_dropout") or 0.0)
    lora = Lora(sites, dropout=dropout, weight_of=frozen if dora else None, start=False)
    read = set()
    for end, parameters in zip(ends, (lora.a, lora.b, lora.magnitude), strict=False):
        for name, parameter in zip(names, parameters, strict=True):
            key = f"{LAYER_PREFIX}{name}{end}"
            read.add(key)
            _fill(folder, tensors, key, parameter)
    refuse_unread(folder, set(tensors) - read)
    target_modules = config.get("target_modules") or []
    target = target_modules if isinstance(target_modules, str) else ",".join(target_modules)
    rank = Counter(site.rank for site in sites.values()).most_common(1)[0][0]
    options = {"rank": rank, "alpha": config["lora_alpha"], "target": target}
    return Adapter("lora", options, lora=lora)


def _site(
    folder: AdapterFolder,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    base: Base,
    name: str,
) -> Site:
    """The site of a layer's delta; its rank must agree between configuration and tensors."""
    inputs, outputs = base.shape.linears[name]
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    pattern = next((pattern for pattern in ranks if matches(pattern, name)), None)
    rank = config["r"] if pattern is None else ranks[pattern]
    key = f"{LAYER_PREFIX}{name}{_A}"
    if key in tensors and tensors[key].dim() == 2 and len(tensors[key]) != rank:
        field = "r" if pattern is None else f"rank_pattern {pattern!r}"
        raise folder.damaged(
            CONFIG,
            say(
                f"{field} is {rank}, but {key} has rank {len(tensors[key])}",
                f"{field} 为 {rank}，而 {key} 的秩为 {len(tensors[key])}",
            ),
            while_imported=say(
                f"Set {field} to the rank used in training: the deltas are scaled by lora_alpha / "
                "rank.",
                f"请将 {field} 改为训练时的秩：增量按 lora_alpha / 秩 缩放。",
            ),
        )
    _require(folder, tensors, key, (rank, inputs))
    alpha = next(
        (a for layer_pattern, a in alphas.items() if matches(layer_pattern, name)),
        config["lora_alpha"],
    )
    rslora = bool(config.get("use_rslora"))
    return Site(inputs, outputs, rank, scale_of(alpha, rank, rslora=rslora))


def _read_ia3(
    folder: AdapterFolder, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    sites = {}
    inner = config.get("feedforward_modules")
    for name in _layers_with_tensors(folder, config, tensors, base, (_IA3,)):
        inputs, outputs = base.shape.linears[name]
        key = f"{LAYER_PREFIX}{name}{_IA3}"
        on_inputs = tensors[key].shape[:1] == (1,) if inner is None else named(inner, name)
        _require(folder, tensors, key, (1, inputs) if on_inputs else (outputs, 1))
        sites[name] = (inputs if on_inputs else outputs, on_inputs)
    ia3 = Ia3(sites)
    for vector, name in zip(ia3.vectors, sites, strict=True):
        vector.data.copy_(tensors[f"{LAYER_PREFIX}{name}{_IA3}"].flatten())
    refuse_unread(folder, {key for key in tensors if not key.endswith(_IA3)})
    return Adapter("ia3", {}, ia3=ia3)


def _layers_with_tensors(
    folder: AdapterFolder,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    base: Base,
    ends: tuple[str, ...],
) -> list[str]:
    """The base's linear layers with tensors whose names have one of these `ends`.

    Raises CorruptFileError if there are none, and for a tensor of a layer that the base does not have
    or that the configuration leaves out.
    """
    layers: dict[str, None] = {}
    for key in tensors:
        end = next((end for end in ends if key.endswith(end)), None)
        if end is None:
            continue
        name = _layer(folder, base, key, end)
        if name not in layers and not targeted(config, name):
            raise folder.damaged(
                WEIGHTS,
                say(
                    f"it has {key}, but adapter_config.json (target_modules, exclude_modules, "
                    "layers_to_transform) excludes that layer, so PEFT would not read it",
                    f"其中有 {key}，但 adapter_config.json（target_modules、exclude_modules、"
                    "layers_to_transform）不包含该层，PEFT 不会读取它",
                ),
            )
        layers[name] = None
    if not layers:
        raise folder.damaged(WEIGHTS, _missing(f"…{ends[0]}", tensors))
    return list(layers)


def _layer(folder: AdapterFolder, base: Base, key: str, end: str) -> str:
    """The base's linear layer that a tensor belongs to, by its name. Raises CorruptFileError."""
    stem = key.removesuffix(end)
    name = stem.removeprefix(LAYER_PREFIX)
    if stem != name and name in base.shape.linears:
        return name
    candidates = [layer for layer in base.shape.linears if _tail(layer) == _tail(stem)]
    if len(candidates) != 1:
        raise folder.damaged(
            WEIGHTS,
            say(
                f"it has {key}, but the base has no linear layer {name} in its "
                f"{base.shape.layers} decoder layers",
                f"其中有 {key}，但基座的 {base.shape.layers} 层解码层中没有线性层 {name}",
            ),
            while_imported=say(
                "Import it with the base that it was trained on (--base), or train it only on linear "
                "layers of the decoder.",
                "请用训练时的基座导入（--base），或只在解码层的线性层上训练。",
            ),
        )
    expected = f"{LAYER_PREFIX}{candidates[0]}{end}"
    raise folder.damaged(
        WEIGHTS,
        say(
            f"it has {key} instead of {expected}; PEFT would ignore it, and the adapter would have no "
            "effect",
            f"其中的 {key} 应命名为 {expected}：PEFT 会忽略它，使适配器不起作用",
        ),
        while_imported=say(
            "Rename all tensors accordingly, or save the adapter again with PEFT's save_pretrained.",
            "请照此重命名所有张量，或用 PEFT 的 save_pretrained 重新保存该适配器。",
        ),
    )


def _tail(name: str) -> str:
    """A layer's name from the numbered module list on: `layers.0.self_attn.q_proj`."""
    match = re.search(r"[^.]+\.\d+\..*", name)
    return name if match is None else match[0]


def _read_prompt(
    folder: AdapterFolder, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    tokens = config["num_virtual_tokens"]
    prompt = PromptEmbedding(_rows(folder, config, tensors, base.shape.hidden))
    _check_sizes(folder, config, {"token_dim": base.shape.hidden})
    method = "p-tuning" if config["peft_type"] == "P_TUNING" else "prompt-tuning"
    return Adapter(method, {"virtual_tokens": tokens}, prompt=prompt)


def _read_prefix(
    folder: AdapterFolder, config: dict[str, Any], tensors: dict[str, Tensor], base: Base
) -> Adapter:
    tokens, shape = config["num_virtual_tokens"], base.shape
    options: dict[str, Any] = {"virtual_tokens": tokens}
    layers = None
    if (layer_indices := config.get("layers")) is not None:
        layers = [layer for layer in range(shape.layers) if layer in layer_indices]
        if not layers or layers != layer_indices:
            reason = say(
                f"layers is {layer_indices!r}, but the base has {shape.layers} layers",
                f"layers 为 {layer_indices!r}，但基座共 {shape.layers} 层",
            )
            raise folder.damaged(CONFIG, reason)
        options["layers"] = ",".join(map(str, layers))
    width = shape.kv_heads * shape.head_dim
    rows = _rows(
        folder, config, tensors, (shape.layers if layers is None else len(layers)) * 2 * width
    )
    sizes = {"num_layers": shape.layers, "num_attention_heads": shape.kv_heads, "token_dim": width}
    _check_sizes(folder, config, sizes)
    prefix = DeepPrefix(shape, tokens, projection=None, start=rows, layers=layers)
    return Adapter("p-tuning-v2", options, prefix=prefix)


def _rows(
    folder: AdapterFolder, config: dict[str, Any], tensors: dict[str, Tensor], width: int
) -> Tensor:
    """The only tensor of a method with virtual tokens, [num_virtual_tokens, width]."""
    if _PROMPT not in tensors:
        raise folder.damaged(WEIGHTS, _missing(_PROMPT, tensors))
    refuse_unread(folder, set(tensors) - {_PROMPT})
    tokens, rows = config["num_virtual_tokens"], tensors[_PROMPT]
    if rows.dim() == 2 and rows.shape[1] == width and len(rows) != tokens:
        raise folder.damaged(
            CONFIG,
            say(
                f"num_virtual_tokens is {tokens}, but {_PROMPT} has {len(rows)} rows",
                f"num_virtual_tokens 为 {tokens}，而 {_PROMPT} 有 {len(rows)} 行",
            ),
        )
    _require(folder, tensors, _PROMPT, (tokens, width))
    return rows


def _check_sizes(folder: AdapterFolder, config: dict[str, Any], sizes: dict[str, int]) -> None:
    """Raise CorruptFileError if a size in the configuration differs from the base's."""
    for field, size in sizes.items():
        if config.get(field) not in (None, size):
            reason = say(
                f"{field} is {config[field]}, but this base has {size}",
                f"{field} 为 {config[field]}，而该基座为 {size}",
            )
            raise folder.damaged(CONFIG, reason)


def _missing(expected: str, tensors: dict[str, Tensor]) -> str:
    """The reason for a file without the tensor `expected`."""
    if not tensors:
        return say(f"it is empty, but needs {expected}", f"文件为空，应有 {expected}")
    return say(
        f"{expected} is missing; it has {len(tensors)} other tensors, such as {min(tensors)}",
        f"缺少 {expected}；它有 {len(tensors)} 个其他张量，例如 {min(tensors)}",
    )


def _require(
    folder: AdapterFolder, tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]
) -> None:
    """Raise CorruptFileError unless the tensor `key` exists and has this shape."""
    if key not in tensors:
        raise folder.damaged(WEIGHTS, say(f"{key} is missing", f"缺少 {key}"))
    actual = tuple(tensors[key].shape)
    if actual != shape:
        raise folder.damaged(WEIGHTS, shape_mismatch(key, actual, shape))


def _fill(folder: AdapterFolder, tensors: dict[str, Tensor], key: str, parameter: Tensor) -> None:
    _require(folder, tensors, key, tuple(parameter.shape))
    parameter.data = tensors[key].to(parameter.dtype)


def refuse_unread(folder: AdapterFolder, unread: set[str]) -> None:
    """Raise OnebaseError if tensors were not read, such as an embedding's delta."""
    if unread:
        raise OnebaseError(
            say(
                f"The adapter in {folder.path} also has {min(unread)}, which is not supported.",
                f"{folder.path} 中的适配器还包含 {min(unread)}，不支持。",
            ),
            say(
                "Merge it into its base with PEFT, or train it again on linear layers only.",
                "请用 PEFT 合并到基座，或只在线性层上重新训练。",
            ),
        )


Reader = Callable[[AdapterFolder, dict[str, Any], dict[str, Tensor], Base], Adapter]
READERS: dict[str, Reader] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}
