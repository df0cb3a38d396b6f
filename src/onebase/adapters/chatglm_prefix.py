"""The checkpoint that ChatGLM2's own P-tuning v2 scripts leave, read into an adapter.

Beside config.json with `pre_seq_len`, its weights file holds `transformer.prefix_encoder`: one row a
token, [tokens, layers * 2 * groups * channels], the order of DeepPrefix; with `prefix_projection` these
rows are what an MLP makes of the embedding (modeling_chatglm.py: PrefixEncoder, get_prompt).

ChatGLM counts the positions of a text from 0, prefix or not. Here a text stands behind its prefix. A
query p tokens into a text is therefore turned by p + tokens, not by p; turning each key of the prefix by
`tokens` keeps every product of the two.
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
from onebase.adapters.peft_config import AdapterFolder
from onebase.adapters.prefix import DeepPrefix, flatten
from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.model.base import Base

_CONFIG = "config.json"
_BIN, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"
_ENCODER = "transformer.prefix_encoder."
_LARGEST_PICKLE = 64 << 20  # bytes, of what is not mapped from the file
_LARGEST_UNMAPPED = 1 << 30  # bytes of a file in torch's older form, which can't be mapped
# What reading a damaged pickle raises: the unpickler follows it into any operation.
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
    """The adapter in `folder`, and how many weights beside the prefix are not read.

    Raises UsageError for a base that is no ChatGLM, CorruptFileError for a file that holds anything but
    tensors, or sizes other than the configuration's and the base's.
    """
    if getattr(base.model.config, "model_type", None) != "glm":
        raise UsageError(
            say(
                f"{folder.path} holds a prefix for ChatGLM, and {base.name} is no ChatGLM.",
                f"{folder.path} 中是 ChatGLM 的前缀，而 {base.name} 不是 ChatGLM。",
            ),
            say(
                "Name the ChatGLM that it was trained on with --base.",
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
    file, stored = _stored(folder)
    own = {key[len(_ENCODER) :]: stored[key] for key in stored if key.startswith(_ENCODER)}
    if not own:
        reason = say(
            f"it has no {_ENCODER}embedding.weight", f"其中没有 {_ENCODER}embedding.weight"
        )
        raise folder.damaged(file, reason)
    parts = {key: _checked(folder, file, own, key, size) for key, size in sizes.items()}
    if extra := set(own) - set(sizes):
        reason = say(
            f"it has {_ENCODER}{min(extra)}, and prefix_projection is {projection} in {_CONFIG}",
            f"其中有 {_ENCODER}{min(extra)}，而 {_CONFIG} 中 prefix_projection 为 {projection}",
        )
        raise folder.damaged(file, reason)
    rows = parts["embedding.weight"]
    if projection:
        inside = torch.tanh(rows @ parts["trans.0.weight"].T + parts["trans.0.bias"])
        rows = inside @ parts["trans.2.weight"].T + parts["trans.2.bias"]
    turned = _behind_the_prefix(rows, base)
    if not bool(torch.isfinite(turned).all()):
        raise folder.damaged(file, say("the prefix is not finite", "前缀含有非有限值"))
    prefix = DeepPrefix(shape, tokens, projection=None, start=turned)
    adapter = Adapter("p-tuning-v2", {"virtual_tokens": tokens}, prefix=prefix)
    return adapter.to(base.device), len(stored) - len(own)


def _settings(folder: AdapterFolder, base: Base) -> tuple[int, bool]:
    """`pre_seq_len` and `prefix_projection`; the sizes beside them are the base's."""
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
                f"{field} is {config[field]!r:.100}, and {base.name} has {size}",
                f"{field} 为 {config[field]!r:.100}，而 {base.name} 为 {size}",
            )
            raise folder.damaged(_CONFIG, reason)
    return tokens, projection


def _stored(folder: AdapterFolder) -> tuple[str, dict[str, Tensor]]:
    """The name of the weights file and its tensors, mapped rather than read where that can be."""
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
            warnings.simplefilter(
                "ignore"
            )  # of a pickle in another protocol, which is refused anyway
            # Tensors only: a pickle that asks for anything else is refused before it is given any.
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except CorruptFileError:
        raise
    except _PICKLE_ERRORS as error:
        reason = say(
            "it holds something else than tensors, or is damaged", "其中有张量以外的内容，或已损坏"
        )
        raise folder.damaged(file, reason) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and name.isprintable() and isinstance(value, Tensor)
        for name, value in content.items()
    ):
        raise folder.damaged(file, say("it is not a dictionary of tensors", "它不是张量字典"))
    return file, content


def _check_members(folder: AdapterFolder, path: Path) -> None:
    """Raise CorruptFileError for an archive that unpacks to more than its file holds."""
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
            "it would take more memory to read than a prefix does",
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
    """A tensor of the prefix encoder in fp32, of exactly this size."""
    name = f"{_ENCODER}{key}"
    if key not in tensors:
        raise folder.damaged(file, say(f"{name} is missing", f"缺少 {name}"))
    tensor = tensors[key]
    if tuple(tensor.shape) != size:
        found = tuple(tensor.shape)
        reason = say(
            f"{name} is {found}, this base needs {size}", f"{name} 为 {found}，应为 {size}"
        )
        raise folder.damaged(file, reason)
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not tensor.is_floating_point() or not plain:
        kind = str(tensor.dtype).removeprefix("torch.")
        reason = say(f"{name} holds {kind}, not floating point", f"{name} 为 {kind}，而非浮点数")
        raise folder.damaged(file, reason)
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _too_large(folder)  # a few numbers that claim to be many
    return tensor.detach().float()


def _behind_the_prefix(rows: Tensor, base: Base) -> Tensor:
    """`rows` with their keys turned to the position that follows the prefix, [tokens, width]."""
    shape, tokens = base.shape, len(rows)
    stacked = rows.to(base.device).view(tokens, shape.layers, 2, shape.kv_heads, shape.head_dim)
    keys, values = stacked.permute(2, 1, 3, 0, 4)  # each [layers, kv_heads, tokens, head_dim]
    position = torch.tensor([[tokens]], device=base.device)
    with torch.no_grad():
        cosine, sine = (part[0, 0].float() for part in base.model.model.rotary_emb(keys, position))
    pairs = len(cosine) // 2
    cosine, sine = cosine[:pairs], sine[:pairs]
    first, second = keys[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1)
    keys = torch.cat([turned.flatten(-2), keys[..., 2 * pairs :]], dim=-1)
    return flatten(keys, values).cpu()
