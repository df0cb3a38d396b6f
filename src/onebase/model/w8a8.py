"""A base in w8a8: every weight that a product reads as int8, the embedding too.

The rounded weights are kept in the cache, one file for a base, and the next process maps that file: it
neither reads the base's own weights whole nor rounds them again.
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
from onebase.model.int8 import Int8Embedding, Int8Linear, discard, rounded

_FORM = "2"  # of the file; one of another form is not read
EMBEDDING, HEAD = "embedding", "head"


def folder() -> Path:
    """Where rounded weights and what was measured of them are kept."""
    return results_root() / "w8a8"


def identity(model: Any, linears: Sequence[str]) -> str:
    """A hash of all that is rounded of a model. 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for weight in (*(model.get_submodule(name).weight for name in linears), *ends):
        digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def hold_w8a8(model: Any, linears: Sequence[str]) -> None:
    """Change a model in place, layer by layer, so that never more than one weight is there twice."""
    weights = identity(model, linears)
    kept = read_rounded(weights)
    made: dict[str, Tensor] = {}

    def both(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        parts = (f"{name}.weight", f"{name}.scale")
        if kept is not None and all(part in kept for part in parts):
            return kept[parts[0]], kept[parts[1]]
        made[parts[0]], made[parts[1]] = rounded(weight.data)
        return made[parts[0]], made[parts[1]]

    for name in linears:
        linear = model.get_submodule(name)
        parent = model.get_submodule(name.rpartition(".")[0])
        own = Int8Linear(*both(name, linear.weight), linear.bias, torch.float32)
        setattr(parent, name.rpartition(".")[2], own)
        discard(linear.weight)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    last = Int8Linear(*both(HEAD, head.weight), head.bias, torch.float32)
    tied = head.weight is embedding.weight
    rows, scale = (last.weight.data, last.scale) if tied else both(EMBEDDING, embedding.weight)
    weight = nn.Parameter(rows, requires_grad=False)
    factor = float(getattr(embedding, "scalar_embed_scale", 1.0))  # Gemma 3 scales inside
    model.set_input_embeddings(Int8Embedding(weight, scale, factor))
    model.set_output_embeddings(last)
    discard(head.weight)
    discard(embedding.weight)
    if made:
        keep_tensors(_file(weights), {**(kept or {}), **made}, {"form": _FORM})


def _file(weights: str) -> Path:
    return folder() / f"{weights}.safetensors"


def keep_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of the cache, whole or not at all; a cache that can't be written to does without."""
    partial = file.with_name(f".{file.name}.partial")
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), partial, metadata=metadata)
        partial.replace(file)
    with suppress(OSError):
        partial.unlink(missing_ok=True)


def read_rounded(weights: str) -> dict[str, Tensor] | None:
    """The rounded weights of that identity, by name; None where there is nothing sound."""
    file = _file(weights)
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("form") != _FORM:
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
