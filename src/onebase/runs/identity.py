"""The identity of a run: a hash of everything that must be the same for it to be resumed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from onebase.model.base import Base


def with_identity(config: dict[str, Any], same: object) -> dict[str, Any]:
    """`config` as YAML reads it back, with the hash of what must be the `same`."""
    return {"identity": identity_of(same), **as_yaml_reads(config)}


def identity_of(same: object) -> str:
    """A SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()


def base_config(base: Base) -> dict[str, Any]:
    """The entries of a config for the base, and for the folder that relative paths start from."""
    return {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "precision": base.precision.text,
        "folder": str(Path.cwd()),
    }


def as_yaml_reads(config: dict[str, Any]) -> dict[str, Any]:
    """A config as config.yaml gives it back: plain values only."""
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    plain: dict[str, Any] = yaml.safe_load(text)
    return plain
