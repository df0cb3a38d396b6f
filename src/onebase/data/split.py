"""Splitting off held-out rows: the same rows every time, with no input in both parts."""

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from onebase.data.example import Dataset, Example
from onebase.errors import UsageError
from onebase.language import say

Key = TypeVar("Key")


def held_out_keys(keys: Iterable[Key], fraction: float, seed: int) -> set[Key]:
    """The distinct keys of the rows to hold out: a `fraction` of them, at least one and never all; 0
    holds out none.
    """
    distinct = list(dict.fromkeys(keys))
    random.Random(seed).shuffle(distinct)
    count = min(max(round(fraction * len(distinct)), 1 if fraction else 0), len(distinct) - 1)
    return set(distinct[:count])


def split(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The training part and the held-out part, each in the file's order.

    `fraction` is the share of distinct inputs that is held out: at least one input if there are two,
    and never all; 0 holds out none. Examples with the same input stay together. In a classification
    set each label gives its share, and keeps its last input for training if possible.

    Raises `UsageError` unless 0 <= `fraction` < 1.
    """
    if not 0 <= fraction < 1:
        raise UsageError(
            say(
                f"The held-out fraction {fraction} is not valid.",
                f"留出比例 {fraction} 无效。",
            ),
            say("It must be at least 0 and below 1.", "它必须不小于 0 且小于 1。"),
        )
    keys = _keys_by_label(dataset, fraction, seed)
    train = tuple(example for example in dataset.examples if example.input_key not in keys)
    held_out = tuple(example for example in dataset.examples if example.input_key in keys)
    return replace(dataset, examples=train), replace(dataset, examples=held_out, bad=())


def _keys_by_label(dataset: Dataset, fraction: float, seed: int) -> set[object]:
    # The label of an input is that of its first example.
    inputs: dict[object, Example] = {}
    for example in dataset.examples:
        inputs.setdefault(example.input_key, example)
    strata: dict[str, list[object]] = {}
    for key, example in inputs.items():
        strata.setdefault(example.answer if dataset.labels else "", []).append(key)
    for label, keys in strata.items():
        random.Random(f"{seed}:{label}").shuffle(keys)
    total = round(fraction * len(inputs))
    if fraction > 0:
        total = max(total, 1)
    total = min(total, len(inputs) - 1)
    quota = _quotas({label: len(keys) for label, keys in strata.items()}, fraction, total)
    return {key for label, keys in strata.items() for key in keys[: quota[label]]}


def _quotas(sizes: dict[str, int], fraction: float, total: int) -> dict[str, int]:
    """The number of held-out inputs per label, `total` in all, by largest remainder."""
    quota = {label: min(int(fraction * size), size - 1) for label, size in sizes.items()}
    by_need = sorted(sizes, key=lambda label: (quota[label] - fraction * sizes[label], label))
    while sum(quota.values()) < total:
        able = [label for label in by_need if quota[label] < sizes[label] - 1]
        # A label leaves training altogether only if every label is down to one input.
        for label in able or [label for label in by_need if quota[label] < sizes[label]]:
            if sum(quota.values()) < total:
                quota[label] += 1
    return quota
