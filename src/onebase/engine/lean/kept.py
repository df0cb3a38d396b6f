"""A base in w8a8 as it was loaded once: weights under their names and what its config says, without
transformers.

Building transformers' model of a base and reading its tokenizer takes longer than all else that a server
does before its first answer. What the lean pass asks of a model are weights, a few settings and rotary
frequencies; those are kept beside the rounded weights, and the next process reads them alone.
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
from onebase.model.int8 import Int8Embedding, Int8Linear
from onebase.model.precision import choose
from onebase.model.rotary import RotaryLimit
from onebase.model.standalone_tokenizer import StandaloneTokenizer, tokenizer_record
from onebase.model.w8a8 import EMBEDDING, HEAD, folder, read_rounded, store_tensors

_FORM = "2"  # of the file; one of another form is not read
_ATTRIBUTES = ("scaling", "sliding_window")  # of an attention module, where it has them
_PROBED = 64  # positions at which rotary tables are compared


class KeptBase:
    """What is kept of a base: `weights` names its rounded weights (`w8a8.identity`)."""

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.weights: str = record["weights"]
        self._record = record
        self._tensors = tensors

    def base(self, name: str, path: Path) -> Base | None:
        """The base in w8a8, for the lean pass alone; None where its rounded weights are gone."""
        rounded = read_rounded(self.weights)
        if rounded is None:
            return None
        record = self._record
        try:
            model = KeptModel(record, {**rounded, **self._tensors})
        except KeyError:
            return None
        base = Base(
            model, StandaloneTokenizer(record["tokenizer"]), name=lasting_name(name), path=path
        )
        base.rotary = None if record["limit"] is None else RotaryLimit(**record["limit"])
        base.precision = choose("w8a8", device="cpu", stored=torch.float32)
        vars(base).update({key: record[key] for key in ("fingerprint", "content")})
        return base


class KeptModel(nn.Module):
    """A model's weights and settings under the names that transformers gives them, without its forward
    pass.
    """

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**record["config"])
        self.generation_config = SimpleNamespace(eos_token_id=record["ends"])
        self.base_model_prefix: str = record["prefix"]
        self._ends = (record["embedding"], record["head"])
        for name in record["linears"]:
            self._place(name, _linear(name, tensors, tensors.get(f"{name}.bias")))
        for name, epsilon in record["norms"].items():
            self._place(name, KeptRMSNorm(tensors[f"{name}.weight"], epsilon))
        for name, settings in record["attributes"].items():
            vars(self.get_submodule(name)).update(settings)
        head = _linear(HEAD, tensors, None)
        embedded = _linear(EMBEDDING, tensors, None) if f"{EMBEDDING}.weight" in tensors else head
        rows = nn.Parameter(embedded.weight.data, requires_grad=False)
        self._place(record["head"], head)
        self._place(record["embedding"], Int8Embedding(rows, embedded.scale, record["factor"]))
        types = {kind: (tensors[f"rotary.{kind}"], by) for kind, by in record["rotary"].items()}
        self._place(f"{self.base_model_prefix}.rotary_emb", KeptRotary(types))

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.get_submodule(self._ends[0])

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.get_submodule(self._ends[1])

    def _place(self, name: str, module: nn.Module) -> None:
        """Put a module where its name says, in containers made on the way; layers are in lists."""
        parts = name.split(".")
        at: nn.Module = self
        for part, below in pairwise(parts):
            if not hasattr(at, part):
                at.add_module(part, nn.ModuleList() if below.isdigit() else nn.Module())
            at = getattr(at, part)
        at.add_module(parts[-1], module)


class KeptRMSNorm(nn.Module):
    """An RMSNorm by what it multiplies with."""

    def __init__(self, scale: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.eps = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last dimension."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class KeptRotary(nn.Module):
    """Rotary tables by layer type: frequencies [rotary / 2], and what cosines and sines are scaled by."""

    def __init__(self, types: Mapping[str, tuple[Tensor, float]]) -> None:
        super().__init__()
        self._types = types

    def forward(self, x: Tensor, positions: Tensor, layer_type: str = "") -> tuple[Tensor, Tensor]:
        """Cosines and sines, [1, positions, rotary], of positions [1, positions]."""
        frequencies, factor = self._types[layer_type]
        angles = positions[..., None].float() * frequencies
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * factor).to(x.dtype), (both.sin() * factor).to(x.dtype)


def keep(base: Base, path: Path, file: Path, weights: str) -> None:
    """Write what is kept of a base in w8a8 that the lean pass runs; `weights` names its rounded weights,
    `file` is `kept_file` as it was before the base was read from the folder `path`.

    Nothing is written where that folder has changed meanwhile, where the tokenizer or the rotary
    embedding do otherwise without transformers, or where the cache can't be written to.
    """
    found = _described(base, weights)
    if found is None or kept_file(path) != file:
        return
    record, tensors = found
    store_tensors(file, tensors, {"form": _FORM, "record": json.dumps(record)})


def kept(file: Path) -> KeptBase | None:
    """What `keep` wrote to the file; None where there is nothing sound."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("form") != _FORM:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return KeptBase(json.loads(metadata["record"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def kept_file(path: Path) -> Path:
    """The file for what is kept of the base in the folder `path`. It is named by the base's files: their
    names, sizes and times, and what reads them.
    """
    files = sorted(item for item in path.iterdir() if item.is_file())
    states = [(item.name, item.stat().st_size, item.stat().st_mtime_ns) for item in files]
    text = repr((str(path.resolve()), states, version("transformers"), version("tokenizers")))
    return folder() / f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def _described(base: Base, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    tokenizer = tokenizer_record(base.tokenizer)
    model = base.model
    inner = getattr(model, model.base_model_prefix)
    rotary = _rotary(inner.rotary_emb)
    if tokenizer is None or not _alike(inner.rotary_emb, rotary):
        return None
    tensors = {f"rotary.{kind}": own.clone() for kind, (own, _) in rotary.items()}
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
    """The tables of transformers' rotary embedding, by layer type; `""` where there is one."""
    kinds = module.layer_types if isinstance(module.rope_type, dict) else [""]
    found = {}
    for kind in kinds:
        start = f"{kind}_" if kind else ""
        factor = float(getattr(module, f"{start}attention_scaling"))
        found[kind] = (getattr(module, f"{start}inv_freq").detach().float(), factor)
    return found


def _alike(module: Any, rotary: Mapping[str, tuple[Tensor, float]]) -> bool:
    own = KeptRotary(rotary)
    x, positions = torch.zeros(1), torch.arange(_PROBED)[None] * 31
    for kind in rotary:
        named = {"layer_type": kind} if kind else {}
        with torch.no_grad():
            pairs = zip(module(x, positions, **named), own(x, positions, kind), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


def _linear(name: str, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Int8Linear:
    own = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return Int8Linear(tensors[f"{name}.weight"], tensors[f"{name}.scale"], own, torch.float32)
