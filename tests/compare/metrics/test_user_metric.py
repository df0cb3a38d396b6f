"""The user's own metric: how it is found, called, and refused."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from onebase.compare.metrics.user_metric import MetricError, UserMetric
from onebase.compare.result import HeldOutRow
from onebase.errors import UsageError

ROW = HeldOutRow("held.jsonl", 4, "the input", "the reference", 0)
NAMES = (f"mine{at}" for at in itertools.count())  # a path is looked through once


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(code: str) -> str:
    name = next(NAMES)
    Path(f"{name}.py").write_text(code, encoding="utf-8")
    return name


@pytest.mark.parametrize("ending", ["", ".py"])
def test_it_gets_answer_reference_and_input(ending: str) -> None:
    source = write(
        "def joined(answer, reference, input):\n    return len(answer + reference + input)"
    )
    metric = UserMetric.load(f"{source}{ending}:joined")
    assert metric.score("a", ROW) == len("athe referencethe input")
    assert (metric.name, metric.better) == ("joined", "higher")


@pytest.mark.parametrize(("value", "better"), [("False", "lower"), ("True", "higher")])
def test_it_says_which_way_is_better(value: str, better: str) -> None:
    source = write(f"def f(a, r, i):\n    return 1\nf.higher_is_better = {value}\n")
    assert UserMetric.load(f"{source}:f").better == better


def test_a_direction_that_is_neither_is_refused() -> None:
    source = write("def f(a, r, i):\n    return 1\nf.higher_is_better = 'no'\n")
    with pytest.raises(UsageError, match=f"{source}:f has higher_is_better = 'no'") as caught:
        UserMetric.load(f"{source}:f")
    assert caught.value.remedy == "Set it to True or False."


def test_the_name_of_a_metric_that_is_there_is_not_taken() -> None:
    source = write("def accuracy(a, r, i):\n    return 1\n")
    assert UserMetric.load(f"{source}:accuracy").name == f"{source}:accuracy"


@pytest.mark.parametrize(
    "written",
    [
        "f(answer, reference)",
        "f(answer, reference, input, more)",
        "f(answer, *, reference, input)",
        "f(prompt, answer, row)",  # a reward
        "f(reference, answer, input)",
        "f()",
    ],
)
def test_other_arguments_are_refused_before_anything_is_trained(written: str) -> None:
    source = write(f"def {written}:\n    return 1\n")
    with pytest.raises(UsageError) as caught:
        UserMetric.load(f"{source}:f")
    assert caught.value.message == f"The metric {source}:f takes other arguments: {written}."
    assert "function(answer, reference, input)" in caught.value.remedy


@pytest.mark.parametrize(
    "written", ["f(*texts)", "f(a, r, i=None)", "f(answer, label, *_, **more)"]
)
def test_other_names_of_the_arguments_are_fine(written: str) -> None:
    source = write(f"def {written}:\n    return 0.25\n")
    assert UserMetric.load(f"{source}:f").score("", ROW) == 0.25


def test_a_function_in_c_is_called_as_it_is() -> None:
    assert UserMetric.load("builtins:max").name == "max"  # it has no signature
    with pytest.raises(MetricError, match="metric builtins:max returned 'the reference'"):
        UserMetric.load("builtins:max").score("", ROW)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (
            "1 / 0",
            r"failed on held\.jsonl:4: ZeroDivisionError: division by zero \(mine\d+\.py, line 2\)",
        ),
        ("None", r"returned None on held\.jsonl:4, for 'so'"),
        ("float('nan')", r"returned nan on held\.jsonl:4"),
        ("exit(1)", r"failed on held\.jsonl:4: SystemExit: 1"),
    ],
)
def test_what_is_no_number_is_told_by_its_row(body: str, cause: str) -> None:
    source = write(f"def f(a, r, i):\n    return {body}\n")
    with pytest.raises(MetricError, match=f"The metric {source}:f {cause}") as caught:
        UserMetric.load(f"{source}:f").score("so", ROW)
    assert caught.value.code == "metric"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:f", "The metric nowhere:f was not found"),
        ("math:tau", "math:tau is not a function"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UserMetric.load(name)


def test_numbers_of_other_libraries_are_numbers() -> None:
    source = write("import numpy\ndef f(a, r, i):\n    return numpy.float32(0.5)\n")
    score: Any = UserMetric.load(f"{source}:f").score("", ROW)
    assert (score, type(score)) == (0.5, float)
