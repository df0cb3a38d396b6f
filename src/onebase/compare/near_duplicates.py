"""Held-out rows that nearly repeat a training row: whoever memorized that row scores on them."""

import math
from collections.abc import Sequence

import numpy as np

from onebase.compare.ngram_similarity import NgramSimilarity, normalised
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

    Rows of a classification set are compared by their inputs (all turns before the answer), those of a
    generation set by input and answer together: where inputs follow a template, they are all alike. The
    same input (`normalised`) counts as 1, whatever the answers.
    """
    if not held_out or not training:
        return ()
    text = _input if kind == "classification" else _whole
    rows, columns, similarities = NgramSimilarity(
        [text(row) for row in held_out], [text(row) for row in training]
    ).pairs(threshold)
    with_input: dict[str, int] = {}
    for column, example in enumerate(training):
        with_input.setdefault(normalised(_input(example)), column)
    nearest = {
        row: (1.0, with_input[key])
        for row, example in enumerate(held_out)
        if (key := normalised(_input(example))) in with_input
    }
    for at in np.lexsort((columns, -similarities)):
        nearest.setdefault(int(rows[at]), (float(similarities[at]), int(columns[at])))
    return tuple(
        NearDuplicate(_place(held_out[row]), _place(training[column]), similarity)
        for row, (similarity, column) in sorted(
            nearest.items(), key=lambda pair: (-pair[1][0], pair[0])
        )
    )


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


def _whole(row: Example) -> str:
    return "\n".join(turn.content for turn in row.turns)


def _place(row: Example) -> str:
    return f"{row.file}:{row.line}"


def _shown(similarity: float) -> str:
    """Two decimals, rounded down: only the same input is 1.00."""
    return f"{math.floor(similarity * 100 + 1e-6) / 100:.2f}"
