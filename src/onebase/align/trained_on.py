"""The base that a stored adapter was trained on, and its precision, from its record."""

from shlex import quote

from onebase.adapters.store import StoredAdapter
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base


def precision_of(stored: StoredAdapter) -> str | None:
    """The precision of its base during training; None where it was not recorded."""
    text = stored.record.get("precision")
    return text if isinstance(text, str) else None


def require_base(stored: StoredAdapter, base: Base) -> None:
    """Raise UsageError where it was trained on another base."""
    trained_on = stored.record.get("base_fingerprint")
    if trained_on and trained_on != base.fingerprint:
        raise UsageError(
            say(
                f"{stored.name} was trained on {stored.base}, not on {base.name}.",
                f"{stored.name} 是在 {stored.base} 上训练的，而不是 {base.name}。",
            ),
            say(f"Use --base {quote(stored.base)}.", f"请使用 --base {quote(stored.base)}。"),
        )


def other_precision(stored: StoredAdapter, base: Base) -> list[str]:
    """A note where the base has another precision than in training."""
    trained_in = precision_of(stored)
    if trained_in is None or trained_in == base.precision.text:
        return []
    return [
        say(
            f"{stored.name} was trained with its base in {trained_in}, and the base is now in "
            f"{base.precision.text}: answers and scores differ slightly. Use --precision {trained_in} to "
            "match the training.",
            f"{stored.name} 训练时基座的精度为 {trained_in}，此处为 {base.precision.text}："
            f"回答与得分会略有不同。用 --precision {trained_in} 可与训练时一致。",
        )
    ]
