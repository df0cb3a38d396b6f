"""Labels that look alike become one class or cause a warning."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.check import check
from onebase.data.formats import load_dataset
from onebase.data.template import Template

Write = Callable[[str, object], Path]


def checked(write: Write, chatml: Tokenizer, labels: list[object]) -> tuple[list[str], list[str]]:
    """The classes and the warnings about them."""
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels * 4)]
    found = check(load_dataset(write("a.jsonl", rows)), Template(chatml))
    return sorted(found.labels), [text for text in found.warnings if "look alike" in text]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, "1", 1.0, 0, "0", 0.0], ["0", "1"]),
        ([-2.0, "-2", 10, 10.0], ["-2", "10"]),
        (["happy", "happy ", "happy\u3000", "sad"], ["happy", "sad"]),
        ([0.5, "0.5", 1], ["0.5", "1"]),
    ],
)
def test_one_value_is_one_class(
    write: Write, chatml: Tokenizer, labels: list[object], classes: list[str]
) -> None:
    assert checked(write, chatml, labels) == (classes, [])


@pytest.mark.parametrize(
    "labels",
    [
        ["happy", "Happy", "sad"],
        ["1", "1.0", "0"],
        ["not sure", "not  sure", "Not_sure"],
        ["yes", "yes.", "no"],
        ["a", "\uff41", "b"],
        ["ok", "o\u200bk", "b"],
        ["true", "True", "false"],
    ],
)
def test_labels_that_look_alike_are_told(
    write: Write, chatml: Tokenizer, labels: list[object]
) -> None:
    classes, warnings = checked(write, chatml, labels)
    assert len(classes) == len(labels)
    assert len(warnings) == 1
    assert repr(labels[0]) in warnings[0]
    assert repr(labels[1]) in warnings[0]


@pytest.mark.parametrize(
    "labels", [["C", "C++", "C#"], ["-1", "1", "0"], ["a b", "ab"], ["+", "-"]]
)
def test_other_labels_are_not(write: Write, chatml: Tokenizer, labels: list[object]) -> None:
    assert checked(write, chatml, labels) == (sorted(map(str, labels)), [])


def test_true_is_no_class_beside_1(write: Write, chatml: Tokenizer) -> None:
    rows = [{"text": "t", "label": label} for label in (1, True, "1")]
    dataset = load_dataset(write("a.jsonl", rows))
    assert dataset.labels == ("1",)
    assert [bad.line for bad in dataset.bad] == [2]
