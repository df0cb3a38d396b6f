"""A base in w8a8: the weights of all products, and of the embedding, as int8.

The rounded weights are stored in the cache, one file per base. The next process maps that file instead
of reading all of the base's own weights and rounding them again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from onebase.model.cache import results_root
from onebase.model.int8_weights import Int8Embedding, Int8Linear, discard, rounded

_FORMAT_VERSION = "2"  # of the file; other versions are not read
EMBEDDING, HEAD = "embedding", "head"


def folder() -> Path:
    """The folder of rounded weights and of measurements on them."""
    return results_root() / "w8a8"


def identity(model: Any, linears: Sequence[str]) -> str:
    """A hash of all weights of a model that are rounded, in 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    embeddings = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for weight in (*(model.get_submodule(name).weight for name in linears), *embeddings):
        digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def hold_w8a8(model: Any, linears: Sequence[str]) -> None:
    """Convert a model in place, one weight at a time, so that at most one weight is in memory twice."""
    weights = identity(model, linears)
    stored = read_rounded(weights)
    new: dict[str, Tensor] = {}

    def weight_and_scale(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        keys = (f"{name}.weight", f"{name}.scale")
        if stored is not None and all(key in stored for key in keys):
            return stored[keys[0]], stored[keys[1]]
        new[keys[0]], new[keys[1]] = rounded(weight.data)
        return new[keys[0]], new[keys[1]]

    for name in linears:
        linear = model.get_submodule(name)
        layer = Int8Linear(*weight_and_scale(name, linear.weight), linear.bias, torch.float32)
        model.set_submodule(name, layer)
        discard(linear.weight)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    int8_head = Int8Linear(*weight_and_scale(HEAD, head.weight), head.bias, torch.float32)
    tied = head.weight is embedding.weight
    rows, scale = (
        (int8_head.weight.data, int8_head.scale)
        if tied
        else weight_and_scale(EMBEDDING, embedding.weight)
    )
    weight = nn.Parameter(rows, requires_grad=False)
    factor = float(getattr(embedding, "scalar_embed_scale", 1.0))  # Gemma 3 scales inside
    model.set_input_embeddings(Int8Embedding(weight, scale, factor))
    model.set_output_embeddings(int8_head)
    discard(head.weight)
    discard(embedding.weight)
    if new:
        store_tensors(_file(weights), {**(stored or {}), **new}, {"form": _FORMAT_VERSION})


def _file(weights: str) -> Path:
    return folder() / f"{weights}.safetensors"


def store_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a cache file atomically; errors of a cache that can't be written to are ignored."""
    partial = file.with_name(f".{file.name}.partial")
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), partial, metadata=metadata)
        partial.replace(file)
    with suppress(OSError):
        partial.unlink(missing_ok=True)


def read_rounded(weights: str) -> dict[str, Tensor] | None:
    """The rounded weights of the identity `weights`, by name; None if there is no valid file."""
    file = _file(weights)
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("form") != _FORMAT_VERSION:
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
