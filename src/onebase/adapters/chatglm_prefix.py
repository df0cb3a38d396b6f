"""Reading a checkpoint of ChatGLM2's own P-tuning v2 scripts into an adapter.

Its config.json has `pre_seq_len`, its weights file `transformer.prefix_encoder`: one row per token,
[tokens, layers * 2 * groups * channels], in the order of DeepPrefix. With `prefix_projection` an MLP
computes these rows from the embedding (modeling_chatglm.py: PrefixEncoder, get_prompt).

ChatGLM counts the positions of a text from 0, with or without a prefix. Here a text follows its
prefix, so a query at position p of the text is rotated by p + tokens instead of p. Rotating each key
of the prefix by `tokens` keeps all their products the same.
"""

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.adapter_folder import AdapterFolder, not_floating_point, shape_mismatch
from onebase.adapters.prefix import DeepPrefix, flatten
from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.model.base import Base

_CONFIG = "config.json"
_BIN, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"
_ENCODER = "transformer.prefix_encoder."
_LARGEST_PICKLE = 64 << 20  # bytes; pickled data is not mapped from the file
_LARGEST_UNMAPPED = 1 << 30  # bytes of a file in torch's old format, which can't be mapped
# The errors that reading a damaged pickle raises; the unpickler may run into any operation.
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError),
    *(AttributeError, OSError, OverflowError, MemoryError, AssertionError, struct.error),
    zipfile.BadZipFile,
)


def is_chatglm_prefix(folder: Path) -> bool:
    """Whether `folder` looks like such a checkpoint: a config.json with `pre_seq_len`."""
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("pre_seq_len") is not None


def load_chatglm_prefix(folder: AdapterFolder, base: Base) -> tuple[Adapter, int]:
    """The adapter in `folder`, and the number of weights besides the prefix, which are not read.

    Raises UsageError for a base that is no ChatGLM, and CorruptFileError for a file that holds anything
    but tensors, or tensors whose sizes do not fit the configuration and the base.
    """
    if getattr(base.model.config, "model_type", None) != "glm":
        raise UsageError(
            say(
                f"{folder.path} holds a prefix for ChatGLM, but {base.name} is no ChatGLM.",
                f"{folder.path} 中是 ChatGLM 的前缀，而 {base.name} 不是 ChatGLM。",
            ),
            say(
                "Give the ChatGLM that it was trained on with --base.",
                "请用 --base 指明训练时的 ChatGLM。",
            ),
        )
    tokens, projection = _settings(folder, base)
    shape = base.shape
    width = shape.layers * 2 * shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"embedding.weight": (tokens, width)}
    if projection:
        sizes |= {
            "trans.0.weight": (shape.hidden, width),
            "trans.0.bias": (shape.hidden,),
            "trans.2.weight": (width, shape.hidden),
            "trans.2.bias": (width,),
        }
    file, stored = _read_tensors(folder)
    encoder = {key[len(_ENCODER) :]: stored[key] for key in stored if key.startswith(_ENCODER)}
    if not encoder:
        reason = say(
            f"it has no {_ENCODER}embedding.weight", f"其中没有 {_ENCODER}embedding.weight"
        )
        raise folder.damaged(file, reason)
    parts = {key: _checked(folder, file, encoder, key, size) for key, size in sizes.items()}
    if extra := set(encoder) - set(sizes):
        reason = say(
            f"it has {_ENCODER}{min(extra)}, but prefix_projection is {projection} in {_CONFIG}",
            f"其中有 {_ENCODER}{min(extra)}，而 {_CONFIG} 中 prefix_projection 为 {projection}",
        )
        raise folder.damaged(file, reason)
    rows = parts["embedding.weight"]
    if projection:
        hidden = torch.tanh(rows @ parts["trans.0.weight"].T + parts["trans.0.bias"])
        rows = hidden @ parts["trans.2.weight"].T + parts["trans.2.bias"]
    rotated = _rotated_by_prefix(rows, base)
    if not bool(torch.isfinite(rotated).all()):
        raise folder.damaged(file, say("the prefix is not finite", "前缀含有非有限值"))
    prefix = DeepPrefix(shape, tokens, projection=None, start=rotated)
    adapter = Adapter("p-tuning-v2", {"virtual_tokens": tokens}, prefix=prefix)
    return adapter.to(base.device), len(stored) - len(encoder)


def _settings(folder: AdapterFolder, base: Base) -> tuple[int, bool]:
    """`pre_seq_len` and `prefix_projection`; checks the sizes beside them against the base's."""
    try:
        config: dict[str, Any] = json.loads((folder.path / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise folder.damaged(_CONFIG, str(error)) from error
    tokens, projection = config.get("pre_seq_len"), config.get("prefix_projection") or False
    limit = base.context or 1 << 20
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens < limit:
        raise folder.damaged(
            _CONFIG,
            say(
                f"pre_seq_len is {tokens!r:.100}, not a whole number from 1 to {limit - 1}",
                f"pre_seq_len 为 {tokens!r:.100}，应为 1 到 {limit - 1} 的整数",
            ),
        )
    if not isinstance(projection, bool):
        raise folder.damaged(
            _CONFIG,
            say(
                f"prefix_projection is {projection!r:.100}, not true or false",
                f"prefix_projection 为 {projection!r:.100}，应为 true 或 false",
            ),
        )
    shape = base.shape
    needed = {
        "num_layers": shape.layers,
        "kv_channels": shape.head_dim,
        "multi_query_group_num": shape.kv_heads,
        "hidden_size": shape.hidden,
    }
    for field, size in needed.items():
        if field == "multi_query_group_num" and not config.get("multi_query_attention", True):
            continue
        if config.get(field, size) != size:
            reason = say(
                f"{field} is {config[field]!r:.100}, but {base.name} has {size}",
                f"{field} 为 {config[field]!r:.100}，而 {base.name} 为 {size}",
            )
            raise folder.damaged(_CONFIG, reason)
    return tokens, projection


def _read_tensors(folder: AdapterFolder) -> tuple[str, dict[str, Tensor]]:
    """The name of the weights file and its tensors, mapped from the file where possible."""
    file = next((n for n in (_BIN, _SAFETENSORS) if (folder.path / n).is_file()), None)
    if file is None:
        reason = say(
            f"neither this file nor {_SAFETENSORS} exists", f"该文件和 {_SAFETENSORS} 都不存在"
        )
        raise folder.damaged(_BIN, reason)
    path = folder.path / file
    if file == _SAFETENSORS:
        try:
            with safe_open(path, framework="pt") as opened:
                names = opened.keys()
                return file, {name: opened.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise folder.damaged(file, str(error)) from error
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_members(folder, path)
        elif path.stat().st_size > _LARGEST_UNMAPPED:
            raise _too_large(folder)
        with warnings.catch_warnings():
            # About a pickle in another protocol, which is refused anyway.
            warnings.simplefilter("ignore")
            # Tensors only: a pickle that asks for anything else is refused before it gets it.
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except CorruptFileError:
        raise
    except _PICKLE_ERRORS as error:
        reason = say(
            "it holds something other than tensors, or is damaged", "其中有张量以外的内容，或已损坏"
        )
        raise folder.damaged(file, reason) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and name.isprintable() and isinstance(value, Tensor)
        for name, value in content.items()
    ):
        raise folder.damaged(file, say("it is not a dictionary of tensors", "它不是张量字典"))
    return file, content


def _check_members(folder: AdapterFolder, path: Path) -> None:
    """Raise CorruptFileError for a compressed archive, and for one with a huge pickle."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            pickled = member.filename.endswith(".pkl")
            if member.compress_type != zipfile.ZIP_STORED or (
                pickled and member.file_size > _LARGEST_PICKLE
            ):
                raise _too_large(folder)


def _too_large(folder: AdapterFolder) -> CorruptFileError:
    return folder.damaged(
        _BIN,
        say(
            "reading it would take more memory than a prefix needs",
            "读取它所需的内存超出前缀应有的大小",
        ),
    )


def _checked(
    folder: AdapterFolder,
    file: str,
    tensors: dict[str, Tensor],
    key: str,
    size: tuple[int, ...],
) -> Tensor:
    """A tensor of the prefix encoder in fp32. Raises CorruptFileError for another size or dtype."""
    name = f"{_ENCODER}{key}"
    if key not in tensors:
        raise folder.damaged(file, say(f"{name} is missing", f"缺少 {name}"))
    tensor = tensors[key]
    if tuple(tensor.shape) != size:
        raise folder.damaged(file, shape_mismatch(name, tuple(tensor.shape), size))
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not tensor.is_floating_point() or not plain:
        raise folder.damaged(file, not_floating_point(name, tensor.dtype))
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _too_large(folder)  # an expanded view of a few numbers
    return tensor.detach().float()


def _rotated_by_prefix(rows: Tensor, base: Base) -> Tensor:
    """`rows` with their keys rotated by the length of the prefix, [tokens, width]."""
    shape, tokens = base.shape, len(rows)
    stacked = rows.to(base.device).view(tokens, shape.layers, 2, shape.kv_heads, shape.head_dim)
    keys, values = stacked.permute(2, 1, 3, 0, 4)  # each [layers, kv_heads, tokens, head_dim]
    position = torch.tensor([[tokens]], device=base.device)
    with torch.no_grad():
        cosine, sine = (part[0, 0].float() for part in base.model.model.rotary_emb(keys, position))
    pairs = len(cosine) // 2
    cosine, sine = cosine[:pairs], sine[:pairs]
    first, second = keys[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    rotated = torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1)
    keys = torch.cat([rotated.flatten(-2), keys[..., 2 * pairs :]], dim=-1)
    return flatten(keys, values).cpu()
