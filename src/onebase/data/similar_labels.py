"""Warnings about class labels that look alike: `Happy` and `happy`, `1` and `1.0`."""

import math
import unicodedata
from collections import Counter

from onebase.language import say


def similar_labels_warning(labels: Counter[str]) -> list[str]:
    """A warning for each group of labels that look alike but are different classes."""
    groups: dict[object, list[str]] = {}
    for label in labels:
        groups.setdefault(_normalized(label), []).append(label)
    warnings = []
    for group in groups.values():
        if len(group) > 1:
            listed = ", ".join(f"{label!r} ({labels[label]})" for label in group)
            warnings.append(
                say(
                    f"These labels look alike but are different classes: {listed}.",
                    f"这些标签看起来相同，却是不同的类别：{listed}。",
                )
            )
    return warnings


def _normalized(label: str) -> object:
    """The same value for labels that look alike: their number, or their letters in lower case."""
    text = unicodedata.normalize("NFKC", label)
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split()).rstrip(".:!")
