"""The losses of reward models and PPO, pure functions of scores and log-probabilities.

Log-probabilities of tokens are [answers, tokens], right-padded, with `mask` true where an answer
has a token; log-probabilities of whole answers are [answers].
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def masked_mean(values: Tensor, mask: Tensor, *, by_answer: bool = False) -> Tensor:
    """The mean over all tokens, or with `by_answer` over the answers' own means."""
    if not by_answer:
        return (values * mask).sum() / mask.sum().clamp(min=1)
    return ((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), [pairs] (Bradley and Terry 1952; Ouyang et al. 2022,
    InstructGPT, equation 1). The arguments are scores, [pairs].
    """
    return -logsigmoid(chosen - rejected)


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped surrogate `loss`, the share of tokens that are clipped, and an estimate of the KL
    divergence from the policy that sampled the tokens (k3, nats a token).
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    by_answer: bool = False,
) -> PolicyLoss:
    """PPO's clipped surrogate objective, to be minimised (Schulman et al. 2017, equation 7).

    ratio = exp(logprobs - old); the loss is -min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A).
    """
    difference = logprobs - old
    ratio = difference.exp()
    whole = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = masked_mean(-torch.minimum(whole, clipped), mask, by_answer=by_answer)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped < whole).to(ratio), mask)
        approx_kl = masked_mean((-difference).exp() - 1 + difference, mask)
    return PolicyLoss(loss, clip_fraction, approx_kl)


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None
) -> Tensor:
    """Half the squared error of the values, clipped around the old ones by `clip`: the larger of
    (V - R)^2 and (clamp(V, old - clip, old + clip) - R)^2 (Schulman et al. 2017, section 5, as in
    its published code).
    """
    error = (values - returns).square()
    if clip is not None:
        near = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * masked_mean(error, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens in `mask`; 0 where all returns are equal."""
    predicted, actual = values[mask].double(), returns[mask].double()
    variance = actual.var(correction=0)
    if not float(variance) > 0:
        return 0.0
    return float(1 - (actual - predicted).var(correction=0) / variance)
