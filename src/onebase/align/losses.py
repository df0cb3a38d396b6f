"""The losses of learning from preferences and rewards, pure functions of log-probabilities.

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


@dataclass(frozen=True)
class DPOLoss:
    """The loss of every pair, and the implicit rewards of both answers, all [pairs]."""

    losses: Tensor
    chosen: Tensor
    rejected: Tensor


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> DPOLoss:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): -log sigmoid(r_c - r_r)
    with the implicit rewards r = beta (log policy - log reference) of equation 5.

    `label_smoothing` e takes the labels to be flipped with that probability: (1 - e) L(r_c - r_r) +
    e L(r_r - r_c) (Mitchell 2023, conservative DPO). The arguments are of whole answers, [pairs].
    """
    chosen_reward = beta * (chosen - reference_chosen)
    rejected_reward = beta * (rejected - reference_rejected)
    losses = -logsigmoid(chosen_reward - rejected_reward)
    if label_smoothing:
        flipped = -logsigmoid(rejected_reward - chosen_reward)
        losses = (1 - label_smoothing) * losses + label_smoothing * flipped
    return DPOLoss(losses, chosen_reward.detach(), rejected_reward.detach())


@dataclass(frozen=True)
class KTOLoss:
    """The loss of every answer and its implicit reward, both [answers]; the reference point."""

    losses: Tensor
    rewards: Tensor
    point: Tensor


def kto_loss(
    logprobs: Tensor,
    reference: Tensor,
    good: Tensor,
    mismatched: Tensor,
    mismatched_reference: Tensor,
    *,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> KTOLoss:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, equations 7 and 8).

    r = log policy - log reference; z0 = max(0, mean of r over answers to other prompts), without
    gradient; the loss is w (1 - sigmoid(beta (r - z0))) for good answers and
    w (1 - sigmoid(beta (z0 - r))) for bad ones, w being `desirable` or `undesirable`. `good` is
    boolean, all of them [answers] and of whole answers.
    """
    ratio = logprobs - reference
    point = (mismatched - mismatched_reference).mean().clamp(min=0).detach()
    signed = torch.where(good, ratio - point, point - ratio)
    weight = torch.where(good, desirable, undesirable).to(ratio)
    return KTOLoss(weight * (1 - torch.sigmoid(beta * signed)), (beta * ratio).detach(), point)
