"""Whether an adapter was trained on the base that it is used on: by fingerprint, or by name."""

import re
from pathlib import Path
from shlex import quote

import torch
from safetensors import SafetensorError, safe_open

from onebase.adapters.store import StoredAdapter
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base

# Hub names of the bases that have a short name here.
_HUB_NAMES = {
    "smollm2-135m": "smollm2-135m-instruct",
    "gemma3-270m": "gemma-3-270m-it",
}
_STORAGE_SUFFIX = re.compile(
    r"([-_]unsloth)?[-_]bnb[-_][48]bit$|([-_.](i?q\d\w*|b?f16|fp16|f32))?\.gguf$"
)
_COMPARED_ROWS = 64  # of each tensor


def require_trained_on(stored: StoredAdapter, base: Base) -> None:
    """Raise UsageError for an adapter that was trained on another base, by the fingerprint."""
    fingerprint = stored.record.get("base_fingerprint")
    if not fingerprint or fingerprint == base.fingerprint:
        return
    if stored.base == base.name:
        raise UsageError(
            say(
                f"The weights of {base.name} have changed since {stored.name} was trained.",
                f"{stored.name} 训练完成后，{base.name} 的权重发生了变化。",
            ),
            say(
                "Restore the old weights, give the right base with --base, or train the task again.",
                "请恢复原来的权重，用 --base 指明正确的基座，或重新训练该任务。",
            ),
        )
    raise UsageError(
        say(
            f"{stored.name} was trained on {stored.base}, not on {base.name}.",
            f"{stored.name} 的训练基座是 {stored.base}，不是 {base.name}。",
        ),
        say(
            f"Use --base {quote(stored.base)}, or train the task on this base.",
            f"请使用 --base {quote(stored.base)}，或在该基座上重新训练。",
        ),
    )


def names_another_base(written: str, base: Base) -> bool:
    """Whether `written`, a path or a Hub id, names another base than `base`.

    An existing folder is compared by its weights. Any other name is compared by its last part, which
    stays the same when a base is moved or downloaded to another place.
    """
    try:
        local = Path(written).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        local = False
    if local:
        same = _same_weights(Path(written), base)
        if same is not None:
            return not same
    names = [base.name, str(base.path or ""), str(getattr(base.model.config, "_name_or_path", ""))]
    base_names = {_last_part(name) for name in names if name}
    base_names |= {_HUB_NAMES[name] for name in base_names if name in _HUB_NAMES}
    return _last_part(written) not in base_names


def _last_part(name: str) -> str:
    """The last part of a path or a Hub id in lower case, without a suffix for the weights' format."""
    parts = [part for part in re.split(r"[/\\]", name.lower()) if part] or [""]
    cached = [part for part in parts if part.startswith("models--")]  # the Hub client's cache
    last = (cached or parts)[-1].rpartition("--")[2]
    return _STORAGE_SUFFIX.sub("", last)


def _same_weights(folder: Path, base: Base) -> bool | None:
    """Whether a folder holds the base's weights.

    Compares the first rows of the tensors that the base's fingerprint uses and that have the same
    name in both. None if there are no such tensors, or if the files can't be read.
    """
    if base.path is not None and base.path.exists() and folder.samefile(base.path):
        return True
    base_tensors = {
        name: parameter
        for name, parameter in base.model.named_parameters()
        if parameter.dim() == 1 or parameter is base.embedding.weight
    }
    compared = 0
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in set(stored.keys()) & set(base_tensors):
                    expected, stored_rows = (
                        base_tensors[name].detach().cpu(),
                        stored.get_slice(name),
                    )
                    if tuple(stored_rows.get_shape()) != tuple(expected.shape):
                        return False
                    rows = stored_rows[:_COMPARED_ROWS].to(expected.dtype)
                    if not torch.equal(rows, expected[:_COMPARED_ROWS]):
                        return False
                    compared += 1
    except (OSError, SafetensorError):
        return None
    return True if compared else None
