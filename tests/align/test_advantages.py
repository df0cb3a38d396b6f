"""Advantages on numbers worked out by hand, at their limits, and by their definitions."""

import pytest
import torch

from onebase.align.advantages import gae, group_advantages, whiten

FULL = torch.ones(1, 3, dtype=torch.bool)


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    values = torch.tensor([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, FULL, gamma=0.9, lam=0.8)
    # deltas: 0 + .9 * 1 - .5 = .4; 1 + .9 * 1.5 - 1 = 1.35; 2 - 1.5 = .5
    # A_3 = .5; A_2 = 1.35 + .72 * .5 = 1.71; A_1 = .4 + .72 * 1.71 = 1.6312
    expected = torch.tensor([[1.6312, 1.71, 0.5]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values)


def test_gae_with_lambda_0_is_the_temporal_difference() -> None:
    rewards, values = torch.randn(4, 5), torch.randn(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, gamma=0.7, lam=0.0)
    ahead = torch.cat([values[:, 1:], torch.zeros(4, 1)], 1)
    torch.testing.assert_close(advantages, rewards + 0.7 * ahead - values)


def test_gae_with_lambda_1_is_the_discounted_return_less_the_value() -> None:
    rewards, values = torch.randn(3, 4), torch.randn(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    expected = torch.stack(
        [sum(0.9 ** (u - t) * rewards[:, u] for u in range(t, 4)) for t in range(4)], 1
    )
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantages, expected - values)


def test_gae_of_a_shorter_answer_is_that_of_the_answer_alone() -> None:
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    alone, _ = gae(rewards[:, :2], values[:, :2], FULL[:, :2], gamma=0.9, lam=0.95)
    mask = torch.tensor([[True, True, False]])
    padded, returns = gae(rewards, values, mask, gamma=0.9, lam=0.95)
    torch.testing.assert_close(padded[:, :2], alone)
    assert float(padded[0, 2]) == float(returns[0, 2]) == 0


def test_group_advantages_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, 5.0])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    advantages = group_advantages(scores, 2, mask, epsilon=0.0 + 1e-12)
    # the deviation of (1, 3) is sqrt(2): +-1 / 1.41421; equal scores have no advantage
    half = 2**-0.5
    expected = torch.tensor([[-half, -half], [half, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(advantages, expected)
    unscaled = group_advantages(scores, 2, mask, scale=False)
    torch.testing.assert_close(unscaled[:2, 0], torch.tensor([-1.0, 1.0]))


def test_one_sample_has_no_group_advantage() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    assert not group_advantages(torch.tensor([1.0, 5.0]), 1, mask).any()


def test_whitening() -> None:
    values = torch.randn(6, 7, dtype=torch.float64) * 3 + 2
    mask = torch.rand(6, 7) < 0.7
    white = whiten(values, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[mask].std()) == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()
    order = values[mask].argsort()
    assert torch.equal(white[mask].argsort(), order)
