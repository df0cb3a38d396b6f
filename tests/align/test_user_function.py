"""A function of the user's: found by module or by file, its failures told by their place."""

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.align.user_function import call_function, load_function
from onebase.errors import DataError, UsageError
from onebase.language import set_language

HALF = "ten = 10\ndef half(prompt, answer, row):\n    return 0.5\ndef _hidden():\n    pass\n"
NAMES = (f"own{at}" for at in itertools.count())  # a path is looked through once


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def load(name: str) -> Callable[..., Any]:
    return load_function(name, "reward", "prompt, answer and the data row")


def write(code: str, folder: str = ".") -> str:
    """The name of a new module with that code."""
    name = next(NAMES)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, f"{name}.py").write_text(code, encoding="utf-8")
    return name


@pytest.mark.parametrize("ending", ["", ".py"])
def test_a_function_is_found_in_the_present_folder(ending: str) -> None:
    source = write(HALF) + ending
    assert load(f"{source}:half")("", "", {}) == 0.5
    with pytest.raises(UsageError, match="ten is not a function") as caught:
        load(f"{source}:ten")
    assert caught.value.remedy == "It takes prompt, answer and the data row, and returns a number."
    with pytest.raises(UsageError, match=f"{source} has no function 'nothing'") as caught:
        load(f"{source}:nothing")
    assert caught.value.remedy == "Its functions: half."


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no/such/file.py:f", "no file no/such/file.py"),
        (":f", "Empty module name"),
        (".near:f", "relative import"),
        ("no.such:thing:f", "No module named 'no'"),
    ],
)
def test_a_missing_module_is_named(name: str, cause: str) -> None:
    with pytest.raises(UsageError, match=f"The reward {name} was not found: .*{cause}") as caught:
        load(name)
    assert "path/to/file.py:function" in caught.value.remedy


def test_a_file_is_found_by_its_path_whatever_its_name() -> None:
    """It may have the name of another module, import its neighbours, and hold a dataclass."""
    neighbour = write("value = 7\n", "elsewhere")
    Path("elsewhere/json.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        f"from {neighbour} import value\n"
        "@dataclass\nclass Row:\n    text: str\n"
        "def seven(*_):\n    return value\n",
        encoding="utf-8",
    )
    assert load("elsewhere/json.py:seven")() == 7
    assert load(f"{Path('elsewhere/json.py').resolve()}:seven")() == 7
    assert sys.modules["json"].__name__ == "json"
    assert "loads" in dir(sys.modules["json"])


@pytest.mark.parametrize("ending", ["", ".py"])
@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def half(:\n", r"SyntaxError: .*\(own\d+\.py, line 1\)"),
        ("import sys\n\nsys.exit(3)\n", r"SystemExit: 3 \(own\d+\.py, line 3\)"),
        ("f = 1 / 0\n", r"ZeroDivisionError: division by zero \(own\d+\.py, line 1\)"),
        ("import no_such_package\n", r"No module named 'no_such_package' \(own\d+\.py, line 1\)"),
        ("from math import no_such_name\n", r"ImportError: cannot import name 'no_such_name'"),
        ("raise SystemExit\n", r"SystemExit \(own\d+\.py, line 1\)"),
    ],
)
def test_a_module_that_fails_is_told_by_its_own_line(code: str, cause: str, ending: str) -> None:
    name = write(code) + ending
    with pytest.raises(UsageError, match=rf"{name}:half can't be imported: .*{cause}") as caught:
        load(f"{name}:half")
    assert "Correct it" in caught.value.remedy


def call(function: Callable[..., Any], answer: str = "so") -> float:
    return call_function(
        function, (1, 2), name="metric f", where="f.jsonl:7", answer=answer, error=DataError
    )


def test_the_arguments_arrive_and_the_number_returns() -> None:
    assert call(lambda one, two: one + two) == 3.0


def exit_now(*_: Any) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (exit_now, r"metric f failed on f\.jsonl:7: SystemExit: 3 \(test_user_function\.py, line"),
        (lambda: 1.0, r"failed on f\.jsonl:7: TypeError: .* takes 0"),
        (lambda *_: "good", r"metric f returned 'good' on f\.jsonl:7, for 'so'"),
        (lambda *_: math.nan, r"returned nan on f\.jsonl:7"),
        (lambda *_: math.inf, r"returned inf on f\.jsonl:7"),
    ],
)
def test_a_failure_is_told_by_its_row(function: Callable[..., Any], cause: str) -> None:
    with pytest.raises(DataError, match=cause) as caught:
        call(function)
    assert "the run continues" in caught.value.remedy


def test_a_failure_is_told_in_chinese() -> None:
    set_language("zh")
    with pytest.raises(DataError, match=r"在 f\.jsonl:7 处出错：SystemExit: 3（test_user_function"):
        call(exit_now)
    with pytest.raises(DataError, match=r"在 f\.jsonl:7 处返回 None"):
        call(lambda *_: None)


def test_a_long_answer_is_cut_in_the_message() -> None:
    with pytest.raises(DataError) as caught:
        call(lambda *_: None, "long " * 1000)
    assert len(caught.value.message) < 300
