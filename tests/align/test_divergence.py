"""The KL estimators against the exact divergence, and the led penalty by hand."""

import math
from typing import Any

import pytest
import torch

from onebase.align.divergence import KLCoefficient, divergence

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimators_without_bias_have_the_divergence_as_their_mean(estimator: Any) -> None:
    exact = float((POLICY * (POLICY / REFERENCE).log()).sum())
    estimates = divergence(POLICY.log(), REFERENCE.log(), estimator)
    assert float((POLICY * estimates).sum()) == pytest.approx(exact, abs=1e-12)


def test_estimators_by_hand() -> None:
    d = math.log(2)  # the policy is twice as sure
    policy, reference = torch.tensor([d]), torch.tensor([0.0])
    assert float(divergence(policy, reference, "k1")) == pytest.approx(0.693147)
    assert float(divergence(policy, reference, "k2")) == pytest.approx(0.2402265)
    assert float(divergence(policy, reference, "k3")) == pytest.approx(0.5 - 1 + 0.693147)


def test_k3_is_never_negative_and_all_are_zero_at_equality() -> None:
    a, b = torch.randn(100), torch.randn(100)
    assert bool((divergence(a, b, "k3") >= 0).all())
    for estimator in ("k1", "k2", "k3"):
        assert not divergence(a, a, estimator).any()  # type: ignore[arg-type]


def test_the_led_penalty_by_hand() -> None:
    penalty = KLCoefficient(0.2, target=5.0)
    penalty.update(5.5)  # error .1: times 1.01
    assert penalty.value == pytest.approx(0.202)
    penalty.update(50.0)  # the error is clipped at .2: times 1.02
    assert penalty.value == pytest.approx(0.20604)
    penalty.update(0.0)
    assert penalty.value == pytest.approx(0.20604 * 0.98)


def test_a_fixed_penalty_stays() -> None:
    penalty = KLCoefficient(0.2, target=None)
    penalty.update(100.0)
    assert penalty.value == 0.2
