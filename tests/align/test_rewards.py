"""Where rewards come from, and how varied answers are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.align.rewards import FunctionReward, Prompt, RewardError, _function, distinct_2
from onebase.data.example import Turn
from onebase.errors import UsageError


def test_a_function_is_found_in_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards_here.py").write_text(
        "ten = 10\ndef half(prompt, answer, row):\n    return 0.5\n", encoding="utf-8"
    )
    assert _function("own_rewards_here:half")("", "", {}) == 0.5
    with pytest.raises(UsageError, match="not a function"):
        _function("own_rewards_here:ten")
    with pytest.raises(UsageError, match="nothing"):
        _function("own_rewards_here:nothing")
    with pytest.raises(UsageError, match="no_such_module"):
        _function("no_such_module:f")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def half(:\n", r"SyntaxError: .*\(broken\d\.py, line 1\)"),
        ("import sys\n\nsys.exit(3)\n", r"SystemExit: 3 \(broken\d\.py, line 3\)"),
        ("f = 1 / 0\n", r"ZeroDivisionError: division by zero \(broken\d\.py, line 1\)"),
        ("import no_such_package\n", r"No module named 'no_such_package' \(broken\d\.py, line 1\)"),
        ("from math import no_such_name\n", r"ImportError: cannot import name 'no_such_name'"),
        ("raise SystemExit\n", r"SystemExit \(broken\d\.py, line 1\)"),
    ],
)
def test_a_module_that_fails_is_told_by_its_own_line(
    code: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = next(f"broken{at}" for at in range(100) if f"broken{at}" not in _tried)
    _tried.add(name)
    Path(f"{name}.py").write_text(code, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{name}:half can't be imported: .*{cause}") as caught:
        _function(f"{name}:half")
    assert "Correct it" in caught.value.remedy


_tried: set[str] = set()  # names of modules: a path is looked through once


def raising(error: BaseException) -> Callable[..., Any]:
    def reward(prompt: str, answer: str, row: Any) -> float:
        raise error

    return reward


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (raising(SystemExit(3)), r"failed on f\.jsonl:7: SystemExit: 3 \(test_rewards\.py, line"),
        (raising(ValueError("odd")), r"failed on f\.jsonl:7: ValueError: odd \(test_rewards"),
        (lambda prompt, answer: 1.0, r"failed on f\.jsonl:7: TypeError: .* takes 2"),
        (lambda *_: None, r"returned None on f\.jsonl:7, for 'so'"),
        (lambda *_: [1.0], r"returned \[1\.0\] on f\.jsonl:7"),
        (lambda *_: "good", r"returned 'good' on f\.jsonl:7"),
        (lambda *_: float("-inf"), r"returned -inf on f\.jsonl:7"),
    ],
)
def test_what_is_no_reward_is_told_by_its_row(function: Callable[..., Any], cause: str) -> None:
    prompt = Prompt((Turn("user", "why"),), (5,), {}, "f.jsonl", 7)
    with pytest.raises(RewardError, match=cause) as caught:
        FunctionReward("mine:f", function)(prompt, "so")
    assert "the run continues" in caught.value.remedy


@pytest.mark.parametrize("given", [True, 3, "1.5", 0.25])
def test_what_is_a_number_is_a_reward(given: object) -> None:
    prompt = Prompt((Turn("user", "why"),), (5,), {}, "f.jsonl", 7)
    assert FunctionReward("mine:f", lambda *_: given)(prompt, "so") == float(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c"], 1.0),
        (["a b a b"], 2 / 3),
        (["a b", "a b"], 0.5),
        (["你好你好"], 2 / 3),  # characters, where nothing is set apart by spaces
        (["", "one"], 1.0),
        ([""], 0.0),
    ],
)
def test_distinct_2(texts: list[str], expected: float) -> None:
    assert distinct_2(texts) == pytest.approx(expected)
