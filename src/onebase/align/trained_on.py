"""The base that a stored adapter was trained on, and its precision, from its record."""

from onebase.adapters.store import StoredAdapter
from onebase.language import say
from onebase.model.base import Base


def precision_of(stored: StoredAdapter) -> str | None:
    """The precision of its base during training; None where it was not recorded."""
    text = stored.record.get("precision")
    return text if isinstance(text, str) else None


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
