"""The tokens that end an answer of a base."""

import json
from pathlib import Path

from onebase.data.template import Template
from onebase.model.base import Base


def end_tokens(base: Base, template: Template) -> frozenset[int]:
    """The ends that `template` taught, and those that the base's generation config names.

    `template.stops` are ends too: texts, where a layout writes its end as text.
    """
    config = getattr(base.model, "generation_config", None)
    return template.ends | _tokens(getattr(config, "eos_token_id", None))


def named_ends(folder: Path) -> frozenset[int]:
    """The ends that the generation config of the base in `folder` names, its model not loaded."""
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):  # loading the base reports it
            return frozenset()
        return _tokens(config.get("eos_token_id")) if isinstance(config, dict) else frozenset()
    return frozenset()


def _tokens(named: object) -> frozenset[int]:
    """A token, a list of them or None, as transformers writes them."""
    listed = named if isinstance(named, list | tuple) else [named]
    return frozenset(token for token in listed if isinstance(token, int))
