"""Forgetting: what an adapter does to the base's loss on text that has nothing to do with the task."""

from collections.abc import Mapping
from functools import cache
from importlib import resources

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.rows import TokenRow
from onebase.model.base import Base
from onebase.training.loop import mean_losses

LANGUAGES = ("en", "zh")


@cache
def neutral_texts(language: str) -> tuple[str, ...]:
    """Twelve short everyday texts in a language, from no data set."""
    file = resources.files("onebase.compare") / "neutral_text" / f"{language}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def neutral_losses(base: Base, contribution: Contribution = NOTHING) -> Mapping[str, float]:
    """The mean loss of a token (nats) on the neutral texts of each language: texts as they are, without
    the task's template, under a contribution.
    """
    name = None if contribution is NOTHING else "adapter"
    losses = {}
    for language in LANGUAGES:
        rows = [_row(base, text, name) for text in neutral_texts(language)]
        (losses[language],) = mean_losses(base, rows, {"adapter": contribution}).values()
    return losses


def _row(base: Base, text: str, adapter: str | None) -> TokenRow:
    ids = tuple(base.tokenizer(text)["input_ids"])
    return TokenRow(adapter, ids, (True,) * len(ids))
