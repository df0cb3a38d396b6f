"""A cache of bases in w8a8, which are loaded from it without transformers.

Building transformers' model and loading the tokenizer take most of a server's start. The lean runner only
needs weights, a few settings and rotary frequencies. They are cached beside the rounded weights, and the
next process loads only those.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from onebase.engine.norm import scale_and_epsilon
from onebase.model.base import Base
from onebase.model.fetch import lasting_name
from onebase.model.int8_weights import Int8Embedding, Int8Linear
from onebase.model.precision import choose
from onebase.model.rotary import RotaryLimit
from onebase.model.standalone_tokenizer import StandaloneTokenizer, tokenizer_record
from onebase.model.w8a8 import EMBEDDING, HEAD, folder, read_rounded, store_tensors

_FORM = "2"  # the version of the file format; other versions are ignored
_ATTRIBUTES = ("scaling", "sliding_window")  # of attention modules, if they have them
_COMPARED_POSITIONS = 64  # of rotary tables


class CachedBase:
    """A cached base. `weights` is the identity of its rounded weights (`w8a8.identity`)."""

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.weights: str = record["weights"]
        self._record = record
        self._tensors = tensors

    def base(self, name: str, path: Path) -> Base | None:
        """The base in w8a8, for the lean runner only; None if its rounded weights are gone."""
        rounded = read_rounded(self.weights)
        if rounded is None:
            return None
        record = self._record
        try:
            model = CachedModel(record, {**rounded, **self._tensors})
        except KeyError:
            return None
        base = Base(
            model, StandaloneTokenizer(record["tokenizer"]), name=lasting_name(name), path=path
        )
        base.rotary = None if record["limit"] is None else RotaryLimit(**record["limit"])
        base.precision = choose("w8a8", device="cpu", stored=torch.float32)
        vars(base).update({key: record[key] for key in ("fingerprint", "content")})
        return base


class CachedModel(nn.Module):
    """A model's weights and settings under the names of transformers' modules, without a forward pass."""

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**record["config"])
        self.generation_config = SimpleNamespace(eos_token_id=record["ends"])
        self.base_model_prefix: str = record["prefix"]
        self._ends = (record["embedding"], record["head"])
        for name in record["linears"]:
            self._place(name, _linear(name, tensors, tensors.get(f"{name}.bias")))
        for name, epsilon in record["norms"].items():
            self._place(name, CachedRMSNorm(tensors[f"{name}.weight"], epsilon))
        for name, settings in record["attributes"].items():
            vars(self.get_submodule(name)).update(settings)
        head = _linear(HEAD, tensors, None)
        embedded = _linear(EMBEDDING, tensors, None) if f"{EMBEDDING}.weight" in tensors else head
        rows = nn.Parameter(embedded.weight.data, requires_grad=False)
        self._place(record["head"], head)
        self._place(record["embedding"], Int8Embedding(rows, embedded.scale, record["factor"]))
        types = {kind: (tensors[f"rotary.{kind}"], by) for kind, by in record["rotary"].items()}
        self._place(f"{self.base_model_prefix}.rotary_emb", CachedRotary(types))

    def get_input_embeddings(self) -> nn.Module:
        """As in transformers."""
        return self.get_submodule(self._ends[0])

    def get_output_embeddings(self) -> nn.Module:
        """As in transformers."""
        return self.get_submodule(self._ends[1])

    def _place(self, name: str, module: nn.Module) -> None:
        """Add a module under its full name. Missing containers are created: lists of layers, or modules."""
        parts = name.split(".")
        parent: nn.Module = self
        for part, child in pairwise(parts):
            if not hasattr(parent, part):
                parent.add_module(part, nn.ModuleList() if child.isdigit() else nn.Module())
            parent = getattr(parent, part)
        parent.add_module(parts[-1], module)


class CachedRMSNorm(nn.Module):
    """An RMSNorm with a given scale."""

    def __init__(self, scale: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.eps = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last dimension."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class CachedRotary(nn.Module):
    """Rotary embeddings by layer type: frequencies [rotary / 2], and the scale of cosines and sines."""

    def __init__(self, types: Mapping[str, tuple[Tensor, float]]) -> None:
        super().__init__()
        self._types = types

    def forward(self, x: Tensor, positions: Tensor, layer_type: str = "") -> tuple[Tensor, Tensor]:
        """The cosines and sines, [1, positions, rotary], of `positions`, [1, positions]."""
        frequencies, factor = self._types[layer_type]
        angles = positions[..., None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * factor).to(x.dtype), (both.sin() * factor).to(x.dtype)


def write_cached_base(base: Base, path: Path, file: Path, weights: str) -> None:
    """Write a base in w8a8 to the cache. `weights` is the identity of its rounded weights; `file` is the
    result of `cached_base_file` before the base was loaded from the folder `path`.

    Nothing is written if that folder has changed since, if the tokenizer or the rotary embedding behave
    differently without transformers, or if the cache is not writable.
    """
    contents = _contents(base, weights)
    if contents is None or cached_base_file(path) != file:
        return
    record, tensors = contents
    store_tensors(file, tensors, {"form": _FORM, "record": json.dumps(record)})


def read_cached_base(file: Path) -> CachedBase | None:
    """The base that `write_cached_base` wrote to `file`; None if there is none, or it is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("form") != _FORM:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return CachedBase(json.loads(metadata["record"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def cached_base_file(path: Path) -> Path:
    """The cache file of the base in the folder `path`. Its name is a hash of the base's files (their names,
    sizes and times) and of the versions of the libraries that read them.
    """
    files = sorted(item for item in path.iterdir() if item.is_file())
    states = [(item.name, item.stat().st_size, item.stat().st_mtime_ns) for item in files]
    text = repr((str(path.resolve()), states, version("transformers"), version("tokenizers")))
    return folder() / f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def _contents(base: Base, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The record and the tensors to cache; None if the base does not behave the same without transformers."""
    tokenizer = tokenizer_record(base.tokenizer)
    model = base.model
    inner = getattr(model, model.base_model_prefix)
    rotary = _rotary(inner.rotary_emb)
    if tokenizer is None or not _same_rotary(inner.rotary_emb, rotary):
        return None
    tensors = {f"rotary.{kind}": frequencies.clone() for kind, (frequencies, _) in rotary.items()}
    norms, attributes = {}, {}
    for name, module in model.named_modules():
        if (norm := scale_and_epsilon(module)) is not None:
            tensors[f"{name}.weight"], norms[name] = norm[0].clone(), norm[1]
        settings = {key: getattr(module, key) for key in _ATTRIBUTES if hasattr(module, key)}
        if settings:
            attributes[name] = settings
    for name in base.shape.linears:
        if (bias := model.get_submodule(name).bias) is not None:
            tensors[f"{name}.bias"] = bias.data.clone()
    names = {module: name for name, module in model.named_modules()}
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    record = {
        "weights": weights,
        "tokenizer": tokenizer,
        "fingerprint": base.fingerprint,
        "content": base.content,
        "limit": None if base.rotary is None else asdict(base.rotary),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "ends": ends,
        "prefix": model.base_model_prefix,
        "embedding": names[model.get_input_embeddings()],
        "head": names[model.get_output_embeddings()],
        "factor": model.get_input_embeddings().factor,
        "linears": list(base.shape.linears),
        "norms": norms,
        "attributes": attributes,
        "rotary": {kind: factor for kind, (_, factor) in rotary.items()},
    }
    return record, tensors


def _rotary(module: Any) -> dict[str, tuple[Tensor, float]]:
    """The frequencies and scales of transformers' rotary embedding by layer type; `""` if it has only one."""
    kinds = module.layer_types if isinstance(module.rope_type, dict) else [""]
    tables = {}
    for kind in kinds:
        prefix = f"{kind}_" if kind else ""
        factor = float(getattr(module, f"{prefix}attention_scaling"))
        tables[kind] = (getattr(module, f"{prefix}inv_freq").detach().float(), factor)
    return tables


def _same_rotary(module: Any, rotary: Mapping[str, tuple[Tensor, float]]) -> bool:
    """Whether transformers' rotary embedding and ours give the same numbers."""
    ours = CachedRotary(rotary)
    x, positions = torch.zeros(1), torch.arange(_COMPARED_POSITIONS)[None] * 31
    for kind in rotary:
        options = {"layer_type": kind} if kind else {}
        with torch.no_grad():
            pairs = zip(module(x, positions, **options), ours(x, positions, kind), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


def _linear(name: str, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Int8Linear:
    parameter = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return Int8Linear(tensors[f"{name}.weight"], tensors[f"{name}.scale"], parameter, torch.float32)
