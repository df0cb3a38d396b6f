"""Held-out rows that nearly repeat a training row: whoever memorized that row scores on them."""

import math
from collections.abc import Sequence

import numpy as np

from onebase.compare.ngram_similarity import NgramSimilarity
from onebase.compare.result import Kind, NearDuplicate
from onebase.data.example import Example
from onebase.language import say

# Of what it finds in real sets nearly all repeats a row but for a word (bench/near_duplicates.py).
THRESHOLD = 0.8
_SHOWN = 3


def near_duplicates(
    held_out: Sequence[Example],
    training: Sequence[Example],
    kind: Kind,
    threshold: float = THRESHOLD,
) -> tuple[NearDuplicate, ...]:
    """The held-out rows that nearly repeat a training row, each with the nearest one; the most similar
    first.

    In a classification set the inputs are compared (all turns before the answer). In a generation set the
    answers must be similar too, and the smaller similarity counts, because where inputs follow a template
    they are all alike; the same input counts as 1 whatever the answers.
    """
    if not held_out or not training:
        return ()
    inputs = NgramSimilarity([_input(row) for row in held_out], [_input(row) for row in training])
    rows, columns, similarities = inputs.pairs(threshold)
    if kind == "generation":
        answers = NgramSimilarity(
            [row.answer for row in held_out], [row.answer for row in training]
        )
        both = np.minimum(similarities, answers.of(rows, columns))
        similarities = np.where(similarities == 1, 1, both)
        near = similarities >= threshold
        rows, columns, similarities = rows[near], columns[near], similarities[near]
    nearest: dict[int, NearDuplicate] = {}
    for at in np.lexsort((columns, rows, -similarities)):
        row, column = int(rows[at]), int(columns[at])
        pair = NearDuplicate(
            _place(held_out[row]), _place(training[column]), float(similarities[at])
        )
        nearest.setdefault(row, pair)
    return tuple(nearest.values())


def near_duplicates_note(found: Sequence[NearDuplicate], held_out: int) -> str:
    """What the user should know of them, out of so many held-out rows; empty where there are none."""
    if not found:
        return ""
    shown = found[:_SHOWN]
    examples = say(
        "; ".join(
            f"{pair.held_out} and {pair.training} ({_shown(pair.similarity)})" for pair in shown
        ),
        "；".join(
            f"{pair.held_out} 与 {pair.training}（{_shown(pair.similarity)}）" for pair in shown
        ),
    )
    more = say("; …", "；……") if len(found) > _SHOWN else ""
    repeat = "repeats" if len(found) == 1 else "repeat"
    return say(
        f"{len(found)} of {held_out} held-out rows nearly {repeat} a training row (similarity, at most 1): "
        f"{examples}{more}. A method that memorizes training rows scores higher on them. Remove them from "
        "one of the two parts for a fair comparison.",
        f"{held_out} 行留出数据中有 {len(found)} 行与训练数据几乎相同（括号内为相似度，最大为 1）："
        f"{examples}{more}。仅靠记忆训练数据就能在这些行上得到更高的分数。为了公平比较，请从其中一方删除这些行。",
    )


def _input(row: Example) -> str:
    return "\n".join(turn.content for turn in row.turns[:-1])


def _place(row: Example) -> str:
    return f"{row.file}:{row.line}"


def _shown(similarity: float) -> str:
    """Two decimals, rounded down: only the same input is 1.00."""
    return f"{math.floor(similarity * 100 + 1e-6) / 100:.2f}"
