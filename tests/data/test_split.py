from collections import Counter

import pytest

from onebase.data.example import Dataset, Example, Turn
from onebase.data.split import split
from onebase.errors import UsageError


def dataset(pairs: list[tuple[str, str]], *, labels: bool = False) -> Dataset:
    examples = tuple(
        Example((Turn("user", asked), Turn("assistant", answer)), "a.jsonl", line)
        for line, (asked, answer) in enumerate(pairs, start=1)
    )
    names = tuple(sorted({answer for _, answer in pairs})) if labels else ()
    return Dataset("a.jsonl", "input-output", {}, examples, (), names, "")


def test_the_parts_are_the_whole_and_share_no_input() -> None:
    whole = dataset([(f"q{n % 40}", f"a{n}") for n in range(100)])
    train, held = split(whole)
    assert sorted(train.examples + held.examples, key=lambda e: e.line) == list(whole.examples)
    assert {e.input for e in train.examples}.isdisjoint(e.input for e in held.examples)
    assert len({e.input for e in held.examples}) == 4
    assert [e.line for e in train.examples] == sorted(e.line for e in train.examples)


def test_the_seed_decides() -> None:
    """For good: a run that is resumed, on another machine or later, holds the same rows out."""
    whole = dataset([(f"q{n}", "a") for n in range(50)])
    held = [[example.line for example in split(whole, seed=seed)[1].examples] for seed in (1, 2)]
    assert held == [[13, 27, 32, 39, 43], [3, 5, 7, 34, 50]]


@pytest.mark.parametrize(
    ("inputs", "fraction", "held"), [(1, 0.5, 0), (2, 0.1, 1), (2, 0.99, 1), (5, 0, 0), (0, 0.1, 0)]
)
def test_small_sets(inputs: int, fraction: float, held: int) -> None:
    train, rest = split(dataset([(f"q{n}", "a") for n in range(inputs)]), fraction)
    assert len(rest.examples) == held
    assert len(train.examples) == inputs - held


def test_each_label_gives_its_share() -> None:
    pairs = [(f"q{n}", "common" if n < 80 else "rare") for n in range(100)]
    train, held = split(dataset(pairs, labels=True))
    assert Counter(e.answer for e in held.examples) == {"common": 8, "rare": 2}
    assert train.labels == held.labels == ("common", "rare")


def test_a_label_s_only_input_stays_in_training() -> None:
    pairs = [(f"q{n}", "common") for n in range(9)] + [("only", "rare")]
    for seed in range(20):
        train, held = split(dataset(pairs, labels=True), 0.5, seed)
        assert "rare" in {e.answer for e in train.examples}
        assert len(held.examples) == 5


def test_one_input_a_label_still_holds_one_out() -> None:
    _, held = split(dataset([(f"q{n}", f"label{n}") for n in range(6)], labels=True))
    assert len(held.examples) == 1


@pytest.mark.parametrize("fraction", [1, -0.1, 2])
def test_a_fraction_out_of_range_is_named(fraction: float) -> None:
    with pytest.raises(UsageError, match=str(fraction)):
        split(dataset([("q", "a")]), fraction)
