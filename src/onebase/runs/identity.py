"""What must be the same for a run to be resumed, as one hash in its config."""

import hashlib
import json
from typing import Any

import yaml


def with_identity(config: dict[str, Any], same: object) -> dict[str, Any]:
    """`config` as YAML reads it back, with the hash of what must be the `same`."""
    return {"identity": identity_of(same), **as_yaml_reads(config)}


def identity_of(same: object) -> str:
    """A SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()


def as_yaml_reads(config: dict[str, Any]) -> dict[str, Any]:
    """A config as config.yaml gives it back: plain values only."""
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    plain: dict[str, Any] = yaml.safe_load(text)
    return plain
