"""Where rewards come from, and how varied answers are."""

from collections.abc import Callable
from typing import Any

import pytest

from onebase.align.rewards import FunctionReward, Prompt, RewardError, distinct_2
from onebase.data.example import Turn


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
