"""Losses on numbers worked out by hand, at their limits, gradients against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.align.dpo import dpo_loss
from onebase.align.kto import kto_loss
from onebase.align.losses import (
    bradley_terry,
    explained_variance,
    masked_mean,
    policy_loss,
    value_loss,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_means() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    assert float(masked_mean(values, MASK)) == pytest.approx(16 / 4)
    assert float(masked_mean(values, MASK, by_answer=True)) == pytest.approx((2 + 10) / 2)


def test_bradley_terry_by_hand() -> None:
    losses = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(1.0)), math.log(2)])


def test_policy_loss_by_hand() -> None:
    old = torch.zeros(2, 3)
    ratio = torch.tensor([[1.5, 1.5, 0.5], [0.5, 1.0, 1.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 0.0, 0.0]])
    result = policy_loss(ratio.log(), old, advantages, MASK, clip=0.2)
    # min(1.5, 1.2) = 1.2; min(-1.5, -1.2) = -1.5; min(.5, .8) = .5; min(-.5, -.8) = -.8
    assert float(result.loss) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert float(result.clip_fraction) == pytest.approx(2 / 4)
    by_answer = policy_loss(ratio.log(), old, advantages, MASK, clip=0.2, by_answer=True)
    assert float(by_answer.loss) == pytest.approx(-((1.2 - 1.5 + 0.5) / 3 - 0.8) / 2)


def test_policy_loss_at_ratio_1_is_the_policy_gradient() -> None:
    logprobs = drawn(2, 3).requires_grad_()
    advantages = drawn(2, 3)
    result = policy_loss(logprobs, logprobs.detach(), advantages, MASK, clip=0.2)
    assert float(result.loss.detach()) == pytest.approx(-float(masked_mean(advantages, MASK)))
    assert float(result.clip_fraction) == float(result.approx_kl) == 0
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    torch.testing.assert_close(gradient, -advantages * MASK / 4)


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    old = torch.tensor([[0.0, 1.9, 0.0], [0.0, 0.0, 0.0]])
    returns = torch.tensor([[2.0, 1.0, 1.0], [3.0, 0.0, 0.0]])
    # whole: 1, 1, 1, 9; near the old ones by .5: (.5 - 2)^2 = 2.25, (2 - 1)^2, 1, 9
    assert float(value_loss(values, old, returns, MASK, clip=None)) == pytest.approx(12 / 8)
    assert float(value_loss(values, old, returns, MASK, clip=0.5)) == pytest.approx(13.25 / 8)


def test_explained_variance() -> None:
    returns = drawn(2, 3)
    assert explained_variance(returns, returns, MASK) == pytest.approx(1)
    assert explained_variance(torch.zeros(2, 3), returns, MASK) == pytest.approx(0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(2, 3), MASK) == 0


def test_dpo_by_hand() -> None:
    result = dpo_loss(*(torch.tensor([x]) for x in (-1.0, -3.0, -2.0, -2.0)), beta=0.5)
    # implicit rewards .5 and -.5
    assert result.chosen.tolist() == [0.5]
    assert result.rejected.tolist() == [-0.5]
    assert float(result.losses) == pytest.approx(-math.log(sigmoid(1.0)))
    smooth = dpo_loss(
        *(torch.tensor([x]) for x in (-1.0, -3.0, -2.0, -2.0)), beta=0.5, label_smoothing=0.1
    )
    expected = -0.9 * math.log(sigmoid(1.0)) - 0.1 * math.log(sigmoid(-1.0))
    assert float(smooth.losses) == pytest.approx(expected)


def test_dpo_of_the_reference_itself_is_log_2() -> None:
    chosen, rejected = drawn(4), drawn(4)
    result = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert result.losses.tolist() == pytest.approx([math.log(2)] * 4)


def test_kto_by_hand() -> None:
    result = kto_loss(
        torch.tensor([-1.0, -1.0]),
        torch.tensor([-2.0, -2.0]),
        torch.tensor([True, False]),
        torch.tensor([-1.0, -2.0]),
        torch.tensor([-1.4, -2.4]),
        beta=0.5,
        desirable=2.0,
        undesirable=3.0,
    )
    # r = 1, z0 = .4: good 2 (1 - s(.3)), bad 3 (1 - s(-.3))
    assert float(result.point) == pytest.approx(0.4)
    expected = [2 * (1 - sigmoid(0.3)), 3 * (1 - sigmoid(-0.3))]
    assert result.losses.tolist() == pytest.approx(expected)
    assert result.rewards.tolist() == pytest.approx([0.5, 0.5])


def test_ktos_reference_point_is_never_negative() -> None:
    one = torch.tensor([0.0])
    result = kto_loss(one, one, torch.tensor([True]), one - 5, one, beta=1.0)
    assert float(result.point) == 0
    assert float(result.losses) == pytest.approx(0.5)


GOOD = torch.tensor([True, False, True])
FIXED = [drawn(2, 3) for _ in range(3)] + [drawn(3) for _ in range(4)]
LOSSES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "bradley-terry": (bradley_terry, [(3,), (3,)]),
    "policy": (
        lambda x: policy_loss(x, FIXED[0], FIXED[1], MASK, clip=0.2).loss,
        [(2, 3)],
    ),
    "policy by answer": (
        lambda x: policy_loss(x, FIXED[0], FIXED[1], MASK, clip=0.2, by_answer=True).loss,
        [(2, 3)],
    ),
    "value": (lambda x: value_loss(x, FIXED[0], FIXED[2], MASK, clip=0.3), [(2, 3)]),
    "dpo": (
        lambda a, b: dpo_loss(a, b, FIXED[3], FIXED[4], beta=0.3, label_smoothing=0.1).losses,
        [(3,), (3,)],
    ),
    "kto": (
        lambda a: kto_loss(a, FIXED[3], GOOD, FIXED[4], FIXED[5], beta=0.7, desirable=1.5).losses,
        [(3,)],
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name: str) -> None:
    torch.manual_seed(3)
    function, shapes = LOSSES[name]
    inputs = [drawn(*shape).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(function, inputs)
