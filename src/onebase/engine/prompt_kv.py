"""Prompt KV: the keys and values of an adapter's leading virtual tokens, as a KV prefix.

Computing it takes one pass through the base, so it is cached beside the adapter's weights. Each kernel,
and so each precision, has its own file (`compiled-<kernel>.safetensors`). A file that belongs to another
base or to other weights, or that is damaged, is replaced.
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
from onebase.model.fetch import file_sha256

KeysValues = tuple[Tensor, Tensor]


class PromptKVRunner(Protocol):
    """The part of the Runner protocol that computes prompt KV."""

    base: Base
    kernel: str

    def check(self, contribution: Contribution) -> None:
        """As Runner.check."""

    def compute_prompt_kv(self, contribution: Contribution) -> KeysValues:
        """As Runner.compute_prompt_kv."""


def with_prompt_kv(
    runner: PromptKVRunner, adapter: Adapter, folder: Path | None = None
) -> Contribution:
    """An adapter's contribution for generation: its leading virtual tokens are run through the base
    once, with the adapter's deltas, and their keys and values are appended to its KV prefix.

    `folder` is where `adapter` is saved: the result is cached there. Raises UsageError for a
    contribution that the runner cannot apply.
    """
    contribution = adapter.contribution_in_evaluation()
    runner.check(contribution)
    if contribution.virtual is None:
        return contribution
    made_from = None if folder is None else _made_from(runner, contribution, folder)
    file = None if folder is None or made_from is None else folder / prompt_kv_file(runner.kernel)
    prefix = None if file is None else _read(file, str(made_from), runner.base)
    if prefix is None:
        prefix = runner.compute_prompt_kv(contribution)
        prefix = appended(contribution.prefix, prefix)
        if file is not None:
            _write(file, str(made_from), prefix)
    return replace(contribution, virtual=None, prefix=prefix)


def appended(prefix: KeysValues | None, following: KeysValues) -> KeysValues:
    """The keys and values of a prefix and of what follows it, [layers, kv_heads, tokens, head_dim]."""
    if prefix is None:
        return following
    keys, values = (
        torch.cat([first.to(second.dtype), second], dim=2)
        for first, second in zip(prefix, following, strict=True)
    )
    return keys, values


def prompt_kv_file(kernel: str) -> str:
    """The name of the file in which a kernel's prompt KV is cached."""
    return f"compiled-{re.sub(r'[^a-z0-9]+', '-', kernel.lower())}.safetensors"


def _made_from(runner: PromptKVRunner, contribution: Contribution, folder: Path) -> str | None:
    """A text that identifies everything that the prompt KV depends on; None if the adapter's weights
    cannot be read.
    """
    try:
        weights = file_sha256(folder / WEIGHTS)
    except OSError:
        return None
    # The mask is not part of the weights.
    masked_prefix = "".join(f" {count}" for count in contribution.masked_prefix)
    return f"{runner.base.content} {runner.kernel} {weights}{masked_prefix}"


def _read(file: Path, made_from: str, base: Base) -> KeysValues | None:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("made_from") != made_from:
                return None
            keys, values = opened.get_tensor("keys"), opened.get_tensor("values")
    except (OSError, SafetensorError):
        return None
    if metadata.get("sha256") != _digest(keys, values):
        return None
    return keys.to(base.device), values.to(base.device)


def _write(file: Path, made_from: str, prefix: KeysValues) -> None:
    """Write the prefix beside the weights, unless the folder is not writable."""
    keys, values = (part.detach().cpu().contiguous() for part in prefix)
    metadata = {"made_from": made_from, "sha256": _digest(keys, values)}
    partial = file.with_name(f".{file.name}.partial")
    with suppress(OSError, SafetensorError):
        save_file({"keys": keys, "values": values}, partial, metadata=metadata)
        partial.replace(file)
    partial.unlink(missing_ok=True)


def _digest(keys: Tensor, values: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (keys, values):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
