"""The tokens that end an answer of a base."""

from onebase.data.template import Template
from onebase.model.base import Base


def end_tokens(base: Base, template: Template) -> frozenset[int]:
    """The ends that `template` taught, and those that the base's generation config names.

    `template.stops` are ends too: texts, where a layout writes its end as text.
    """
    config = getattr(base.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    listed = named if isinstance(named, list | tuple) else [named]
    return template.ends | {token for token in listed if token is not None}
