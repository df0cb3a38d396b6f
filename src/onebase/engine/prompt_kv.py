"""Adapters compiled for answering: leading virtual tokens become a KV prefix.

That takes one pass through the base, so the prefix is kept beside the adapter's weights and read from
there the next time. Each kernel, and so each precision, has a file of its own
(`compiled-<kernel>.safetensors`). A file that was made from another base or from other weights, or that
is damaged, is made anew.
"""

import hashlib
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.peft_format import WEIGHTS
from onebase.model.base import Base


class Compiler(Protocol):
    """What runs virtual tokens through a base: the part of a Runner that this takes."""

    base: Base
    kernel: str

    def check(self, contribution: Contribution) -> None:
        """As Runner.check."""

    def compile(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        """As Runner.compile."""


def with_prompt_kv(
    compiler: Compiler, adapter: Adapter, folder: Path | None = None
) -> Contribution:
    """An adapter's contribution for answering: leading virtual tokens run through the base once,
    with the adapter's own deltas active, and join its KV prefix.

    With the `folder` that `adapter` was saved in, the result of that run is read from there, or
    kept there. Raises UsageError for what the pass can't apply.
    """
    adapter.eval()
    with torch.no_grad():
        contribution = adapter.contribution()
    compiler.check(contribution)
    if contribution.virtual is None:
        return contribution
    made_from = None if folder is None else _made_from(compiler, contribution, folder)
    file = None if folder is None or made_from is None else folder / prompt_kv_file(compiler.kernel)
    prefix = None if file is None else _read(file, str(made_from), compiler.base)
    if prefix is None:
        prefix = compiler.compile(contribution)
        if contribution.prefix is not None:
            before, own = contribution.prefix, prefix
            prefix = _joined(before[0], own[0]), _joined(before[1], own[1])
        if file is not None:
            _keep(file, str(made_from), prefix)
    return replace(contribution, virtual=None, prefix=prefix)


def prompt_kv_file(kernel: str) -> str:
    """The name of the file in which a kernel's prefix is kept."""
    return f"compiled-{re.sub(r'[^a-z0-9]+', '-', kernel.lower())}.safetensors"


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first.to(second.dtype), second], dim=2)


def _made_from(compiler: Compiler, contribution: Contribution, folder: Path) -> str | None:
    """What a compiled prefix depends on; None where the adapter's weights can't be read."""
    try:
        with (folder / WEIGHTS).open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    masked_prefix = "".join(
        f" {count}" for count in contribution.masked_prefix
    )  # the weights don't say where
    return f"{compiler.base.content} {compiler.kernel} {weights}{masked_prefix}"


def _read(file: Path, made_from: str, base: Base) -> tuple[Tensor, Tensor] | None:
    try:
        with safe_open(file, "pt") as opened:
            facts = opened.metadata() or {}
            if facts.get("made_from") != made_from:
                return None
            keys, values = opened.get_tensor("keys"), opened.get_tensor("values")
    except (OSError, SafetensorError):
        return None
    if facts.get("sha256") != _digest(keys, values):
        return None
    return keys.to(base.device), values.to(base.device)


def _keep(file: Path, made_from: str, prefix: tuple[Tensor, Tensor]) -> None:
    """Write the prefix beside the weights; a folder that can't be written to does without."""
    keys, values = (part.detach().cpu().contiguous() for part in prefix)
    facts = {"made_from": made_from, "sha256": _digest(keys, values)}
    partial = file.with_name(f".{file.name}.partial")
    with suppress(OSError, SafetensorError):
        save_file({"keys": keys, "values": values}, partial, metadata=facts)
        partial.replace(file)
    partial.unlink(missing_ok=True)


def _digest(keys: Tensor, values: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (keys, values):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
