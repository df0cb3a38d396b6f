"""The end tokens of a base's answers."""

import json
from pathlib import Path

from onebase.data.template import Template
from onebase.model.base import Base


def end_tokens(base: Base, template: Template) -> frozenset[int]:
    """The end tokens of `template` and of the base's generation config.

    `template.stops` end an answer too, where a layout writes its end as plain text.
    """
    config = getattr(base.model, "generation_config", None)
    return template.ends | _tokens(getattr(config, "eos_token_id", None))


def named_ends(folder: Path) -> frozenset[int]:
    """The end tokens in the generation config of the base in `folder`, without loading the model."""
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):  # loading the base reports it
            return frozenset()
        return _tokens(config.get("eos_token_id")) if isinstance(config, dict) else frozenset()
    return frozenset()


def _tokens(value: object) -> frozenset[int]:
    """The tokens in a config's value: a token, a list of them or None."""
    tokens = value if isinstance(value, list | tuple) else [value]
    return frozenset(token for token in tokens if isinstance(token, int))
