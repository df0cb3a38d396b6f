"""Whether an adapter from elsewhere names the base that it is used on."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from onebase.model.base import Base

# What a Hub calls the bases that are known here by another name.
_ALSO = {
    "smollm2-135m": "smollm2-135m-instruct",
    "gemma3-270m": "gemma-3-270m-it",
}
_STORED_AS = re.compile(
    r"([-_]unsloth)?[-_]bnb[-_][48]bit$|([-_.](i?q\d\w*|b?f16|fp16|f32))?\.gguf$"
)
_ROWS = 64  # of a tensor, compared


def names_another(written: str, base: Base) -> bool:
    """Whether `written`, a path or a Hub id, is another base than `base`.

    A folder that is there is compared by its weights. Of any other name the last part counts: a base
    that was moved, or fetched to another place, keeps it.
    """
    try:
        local = Path(written).is_dir()
    except (OSError, ValueError):  # longer than a path can be, or with a null byte
        local = False
    if local:
        same = _same_weights(Path(written), base)
        if same is not None:
            return not same
    names = [base.name, str(base.path or ""), str(getattr(base.model.config, "_name_or_path", ""))]
    own = {_last(name) for name in names if name}
    own |= {_ALSO[name] for name in own if name in _ALSO}
    return _last(written) not in own


def _last(name: str) -> str:
    """The last part of a path or a Hub id in small letters, without how its weights are stored."""
    parts = [part for part in re.split(r"[/\\]", name.lower()) if part] or [""]
    cached = [part for part in parts if part.startswith("models--")]  # of the Hub's client
    last = (cached or parts)[-1].rpartition("--")[2]
    return _STORED_AS.sub("", last)


def _same_weights(folder: Path, base: Base) -> bool | None:
    """Whether a folder's weights are the base's: of the tensors that its fingerprint takes, rows of
    those that both name alike. None where there is none, or where the files can't be read.
    """
    if base.path is not None and base.path.exists() and folder.samefile(base.path):
        return True
    own = {
        name: parameter
        for name, parameter in base.model.named_parameters()
        if parameter.dim() == 1 or parameter is base.embedding.weight
    }
    compared = 0
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in set(stored.keys()) & set(own):
                    wanted, piece = own[name].detach().cpu(), stored.get_slice(name)
                    if tuple(piece.get_shape()) != tuple(wanted.shape):
                        return False
                    rows = piece[:_ROWS].to(wanted.dtype)
                    if not torch.equal(rows, wanted[:_ROWS]):
                        return False
                    compared += 1
    except (OSError, SafetensorError):
        return None
    return True if compared else None
