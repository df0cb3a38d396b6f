"""The KL divergence of a policy from its reference: estimates for sampled tokens, and the coefficient
of the KL penalty.
"""

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def divergence(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimates of KL(policy, reference) from tokens sampled from the policy, token by token.

    With d = log policy - log reference (Schulman 2020, "Approximating KL Divergence"): k1 is d,
    without bias and negative at times; k2 is d^2 / 2, biased and small in variance; k3 is
    exp(-d) - 1 + d, without bias and never negative.
    """
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return (-difference).exp() - 1 + difference


class KLCoefficient:
    """The strength of the KL penalty: fixed, or adapted to a `target` divergence (nats an answer).

    Adaptive, it follows Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences",
    section 2.2: e = clip(KL / target - 1, -.2, .2), value <- value (1 + .1 e).
    """

    GAIN = 0.1
    CLIP = 0.2

    def __init__(self, value: float, target: float | None) -> None:
        self.value = value
        self.target = target

    def update(self, divergence: float) -> None:
        """Adapt it to the mean KL of a step's answers."""
        if self.target is None:
            return
        error = min(max(divergence / self.target - 1, -self.CLIP), self.CLIP)
        self.value *= 1 + self.GAIN * error
