"""The label options of `onebase classify`."""

import re
from collections.abc import Sequence

from onebase.errors import UsageError
from onebase.language import say

_QUOTED = re.compile(r'"([^"]+)"\s*(?=,|$)')
_PIECE = re.compile(r"([^,]+)")


def chosen_labels(lists: Sequence[str], single: Sequence[str], known: Sequence[str]) -> list[str]:
    """The distinct labels of `--label` and `--labels`; empty if neither is given.

    Raises UsageError if the given options contain no label.
    """
    names = [name for item in single if (name := item.strip())]
    names = list(dict.fromkeys([*names, *labels_of(lists, known)]))
    if (lists or single) and not names:
        given = ", ".join(map(repr, [*lists, *single]))
        raise UsageError(
            say(f"{given} contains no labels.", f"{given} 中没有标签。"),
            say(
                "Give at least one: --label yes --label no.",
                "请至少给出一个：--label 是 --label 否。",
            ),
        )
    return names


def labels_of(options: Sequence[str], known: Sequence[str]) -> list[str]:
    """The labels of `--labels`. If the option is given several times, each is one label.

    A single option is a comma-separated list. In it, a label may contain commas if it is one of the
    `known` labels or in double quotes.
    """
    if len(options) != 1:
        return list(dict.fromkeys(name for option in options if (name := option.strip())))
    (text,) = options
    with_commas = sorted((label for label in known if "," in label), key=len, reverse=True)
    labels: list[str] = []
    while text := text.strip(" ,\t\n"):
        label = next(
            (name for name in with_commas if re.match(rf"{re.escape(name)}\s*(,|$)", text)), None
        )
        if label is None:
            piece = _QUOTED.match(text) or _PIECE.match(text)
            assert piece  # the text does not begin with a comma
            label, text = piece[1].strip(), text[piece.end() :]
        else:
            text = text[len(label) :]
        labels.append(label)
    return list(dict.fromkeys(labels))
