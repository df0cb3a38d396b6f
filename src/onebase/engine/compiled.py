"""Adapters compiled for answering: leading virtual tokens become a KV prefix.

That takes one pass through the base, so the prefix is kept beside the adapter's weights
(`compiled.safetensors`) and read from there the next time. It is kept for one base, one precision and
one state of the weights; a file that belongs to others, or that is damaged, is made anew.
"""

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.peft_format import WEIGHTS
from onebase.engine.forward import compile_virtual
from onebase.engine.pack import Pack
from onebase.model.base import Base

COMPILED = "compiled.safetensors"


def compiled(base: Base, adapter: Adapter, folder: Path | None = None) -> Contribution:
    """An adapter's contribution for answering: leading virtual tokens run through the base once,
    with the adapter's own deltas active, and join its KV prefix.

    With the `folder` that `adapter` was saved in, the result of that run is read from there, or
    kept there.
    """
    adapter.eval()
    with torch.no_grad():
        contribution = adapter.contribution()
    if contribution.virtual is None:
        return contribution
    made_from = None if folder is None else _made_from(base, contribution, folder)
    prefix = None if folder is None or made_from is None else _read(folder, made_from, base)
    if prefix is None:
        prefix = _through_the_base(base, contribution)
        if folder is not None and made_from is not None:
            _keep(folder, made_from, prefix)
    return replace(contribution, virtual=None, prefix=prefix)


def _through_the_base(base: Base, contribution: Contribution) -> tuple[Tensor, Tensor]:
    """The KV prefix that stands for the virtual tokens, behind the prefix already there."""
    assert contribution.virtual is not None
    pack = Pack({"adapter": replace(contribution, virtual=contribution.virtual.detach())})
    node = pack.virtual_node("adapter")
    assert node is not None
    keys, values = compile_virtual(base, pack, node)
    if contribution.prefix is None:
        return keys, values
    return _joined(contribution.prefix[0], keys), _joined(contribution.prefix[1], values)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first.to(second.dtype), second], dim=2)


def _made_from(base: Base, contribution: Contribution, folder: Path) -> str | None:
    """What a compiled prefix depends on; None where the adapter's weights can't be read."""
    try:
        with (folder / WEIGHTS).open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    unseen = "".join(f" {count}" for count in contribution.unseen)  # the weights don't say where
    return f"{base.fingerprint} {base.embedding.weight.dtype} {weights}{unseen}"


def _read(folder: Path, made_from: str, base: Base) -> tuple[Tensor, Tensor] | None:
    try:
        with safe_open(folder / COMPILED, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("made_from") != made_from:
                return None
            keys, values = file.get_tensor("keys"), file.get_tensor("values")
    except (OSError, SafetensorError):
        return None
    if facts.get("sha256") != _digest(keys, values):
        return None
    return keys.to(base.device), values.to(base.device)


def _keep(folder: Path, made_from: str, prefix: tuple[Tensor, Tensor]) -> None:
    """Write the prefix beside the weights; a folder that can't be written to does without."""
    keys, values = (part.detach().cpu().contiguous() for part in prefix)
    facts = {"made_from": made_from, "sha256": _digest(keys, values)}
    partial = folder / f".{COMPILED}.partial"
    with suppress(OSError, SafetensorError):
        save_file({"keys": keys, "values": values}, partial, metadata=facts)
        partial.replace(folder / COMPILED)
    partial.unlink(missing_ok=True)


def _digest(keys: Tensor, values: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (keys, values):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
