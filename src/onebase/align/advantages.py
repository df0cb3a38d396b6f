"""Advantages: how much better each token was than expected.

All tensors are [answers, tokens], right-padded; `mask` is true where an answer has a token.
"""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (Schulman et al. 2016, equations 11 to 16).

    `values` is the value of the state before each token; that after the last token is 0.
    delta_t = r_t + gamma V_(t+1) - V_t; A_t = delta_t + gamma lam A_(t+1); the return is A_t + V_t.
    Padding gets 0.
    """
    advantages = torch.zeros_like(rewards)
    ahead = rewards.new_zeros(len(rewards))
    next_value = rewards.new_zeros(len(rewards))
    for token in reversed(range(rewards.shape[1])):
        here = mask[:, token]
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        next_value = torch.where(here, values[:, token], next_value)
        advantages[:, token] = torch.where(here, ahead, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_advantages(
    scores: Tensor, samples: int, mask: Tensor, *, scale: bool = True, epsilon: float = 1e-4
) -> Tensor:
    """Group-relative advantages (GRPO; Shao et al. 2024, DeepSeekMath, section 4.1.2): an answer's
    score less the mean of the `samples` answers to its prompt, over their standard deviation, the
    same for every token of the answer.

    `scores` is [answers], the answers to one prompt next to each other. Without `scale` they are not
    divided by the standard deviation (Liu et al. 2025, Dr. GRPO, equation 3).
    """
    groups = scores.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        # A single sample has no standard deviation, and no advantage.
        std = groups.std(1, keepdim=True, correction=min(1, samples - 1))
        centred = centred / (std + epsilon)
    return torch.where(mask, centred.flatten()[:, None], 0.0)


def whiten(values: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """`values` with mean 0 and variance 1 over the tokens in `mask`; padding gets 0."""
    masked = values[mask]
    if len(masked) < 2:
        return torch.where(mask, values - masked.sum(), 0.0)
    scaled = (values - masked.mean()) * torch.rsqrt(masked.var() + epsilon)
    return torch.where(mask, scaled, 0.0)
