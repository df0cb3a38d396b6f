"""What steps cost, learned from what they took."""

import random

import pytest

from onebase.engine.step_cost import StepCost


def test_nothing_is_known_before_a_step_was_seen() -> None:
    cost = StepCost()
    assert cost.decode(4) is None
    assert cost.prefill_tokens(1.0) is None
    assert cost.median_seconds is None
    cost.observe(8, 32, 1.0)  # with no idea of decoding alone, nothing is said of its prompts
    assert cost.prefill_tokens(1.0) is None


@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.001), (0.08, 0.002), (0.05, 0.0)])
def test_prompts_cost_a_start_and_each_token(fixed: float, each: float) -> None:
    drawn, cost = random.Random(0), StepCost()
    for _ in range(200):
        rows, tokens = drawn.randint(1, 32), drawn.choice([0, 0, 16, 100, 500])
        seconds = 0.01 + 0.001 * rows + (fixed + each * tokens if tokens else 0.0)
        cost.observe(rows, tokens, seconds * drawn.uniform(0.95, 1.05))
    assert cost.decode(20) == pytest.approx(0.03, rel=0.1)
    assert cost.prefill_start == pytest.approx(fixed, rel=0.15, abs=0.002)
    tokens = cost.prefill_tokens(0.5)
    assert tokens is not None
    if each:
        assert fixed + each * tokens == pytest.approx(0.5, rel=0.15)
    else:
        assert tokens > 50_000  # nearly for nothing
    assert cost.prefill_tokens(fixed / 2) == 0


def test_one_size_of_batch_is_no_reason_to_think_another_free() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.observe(16, 0, 0.03)
    assert cost.decode(1) == cost.decode(32) == pytest.approx(0.03)


def test_a_hiccup_changes_little_and_a_slower_machine_is_learned() -> None:
    cost = StepCost()
    for _ in range(50):
        cost.observe(16, 0, 0.03)
    cost.observe(16, 0, 10.0)
    assert cost.decode(16) == pytest.approx(0.03, rel=0.2)
    for _ in range(150):
        cost.observe(16, 0, 0.09)
    assert cost.decode(16) == pytest.approx(0.09, rel=0.1)
    assert cost.median_seconds == 0.09
