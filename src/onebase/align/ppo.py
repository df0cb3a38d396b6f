"""Proximal policy optimisation on one base: policy, reference, value and reward are adapters of it.

Reference and reward model score an answer in one mixed pass; what the policy says it has said as it drew
it; the value model begins where its own layers do, above a trunk that is computed once a step.

The loop is that of Ouyang et al. 2022 (InstructGPT, section 3.5) with the clipped objective of
Schulman et al. 2017; with `advantage="group"` it is GRPO (Shao et al. 2024), without a value model.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from onebase.align.advantages import gae, group_advantages, whiten
from onebase.align.answers import packs, tokens_by_row
from onebase.align.divergence import Estimator, Penalty, divergence
from onebase.align.experience import (
    VALUE,
    Experience,
    Models,
    RolloutOptions,
    experience,
    sampling,
)
from onebase.align.losses import explained_variance, masked_mean, policy_loss, value_loss
from onebase.align.rewards import Prompt, distinct_2
from onebase.align.rollout import POLICY, roll_out
from onebase.align.trainee import RATE, Trainee
from onebase.engine.rows import read_rows
from onebase.training.loop import pack_tokens

# Of the method's own rates. For LoRA a tenth moves nothing in ten steps; for a deep prefix a half strays
# without a gain (LOG.md).
_RATES = {"lora": 0.5, "qlora": 0.5}


class PPOOptions(BaseModel):
    """The algorithm. A step learns from its rollouts `epochs` times, an optimizer step for every
    `minibatch` answers, whose gradients are accumulated over as many passes as they need.

    `advantage` is gae (with a value model; `gamma`, `lam`) or group (GRPO). `kl` is the weight of the
    KL penalty, led towards `kl_target` nats an answer where that is given; with gae it is part of the
    rewards, by k1, with group part of the loss, by k3 as in the paper. (In a loss, k3 has the gradient
    of KL(reference, policy); that of KL(policy, reference) is k2's.) `whiten`: gae's advantages have
    deviation 1, a group's are over its deviation. `learning_rate` None is half of LoRA's own, and a tenth
    of any other method's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(50, ge=1)
    epochs: int = Field(2, ge=1)
    minibatch: int = Field(8, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    advantage: Literal["gae", "group"] = "gae"
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip_range: float = Field(0.2, gt=0)
    kl: float = Field(0.05, ge=0)
    kl_target: float | None = Field(None, gt=0)
    kl_estimator: Estimator | None = None
    whiten: bool = True

    @property
    def estimator(self) -> Estimator:
        """The estimator of the KL penalty: k1 in rewards and k3 in a loss, unless chosen."""
        return self.kl_estimator or ("k3" if self.advantage == "group" else "k1")


class ValueOptions(BaseModel):
    """The value model: a fresh adapter of `value_method` with a head at zero. `value_layers` chooses its
    layers, where the method has the choice; None is the top third, so that what lies below is
    computed once a step (the frozen trunk). `value_clip` keeps values near the old ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value_method: str = "lora"
    value_layers: str | None = None
    value_rate: float = Field(2e-4, gt=0)
    head_rate: float = Field(1e-3, gt=0)
    value_clip: float | None = Field(0.2, gt=0)


@dataclass
class Progress:
    """How far PPO has come, beside the models; `judged` is the last step with a judgement, and
    `judgements` are the first one, the best and the last, each with its step. `varied`: whether any
    answers that are compared had different rewards.
    """

    step: int = 0
    penalty: Penalty = field(default_factory=lambda: Penalty(0.0, None))
    first_entropy: float | None = None
    best: float = -float("inf")
    stopped: str = ""
    judged: int = -1
    judgements: dict[str, dict[str, float]] = field(default_factory=dict)
    varied: bool = False


def ppo_step(
    models: Models,
    prompts: Sequence[Prompt],
    rolling: RolloutOptions,
    options: PPOOptions,
    valuing: ValueOptions,
    progress: Progress,
    *,
    seed: int,
) -> dict[str, float]:
    """One step: roll out, score in a mixed pass, and learn. Returns what was measured."""
    asked = [prompt for prompt in prompts for _ in range(rolling.samples)]
    how = sampling(rolling, seed)
    rollouts = roll_out(models.base, models.policy.adapter, models.template, asked, how)
    found = experience(models, rollouts, rolling)
    progress.varied = progress.varied or _varied(found.scores, rolling, options)
    advantages, returns = _advantages(found, rolling, options, progress.penalty.weight)
    drawn = random.Random(seed)
    records = []
    for _ in range(options.epochs):
        order = drawn.sample(range(len(rollouts)), len(rollouts))
        for at in range(0, len(order), options.minibatch):
            chosen = order[at : at + options.minibatch]
            records.append(
                _update(
                    models, found, advantages, returns, chosen, rolling, options, valuing, progress
                )
            )
    progress.step += 1
    kl = float(found.divergences.mean())
    progress.penalty.observe(kl)
    entropy = float(masked_mean(found.entropies, found.mask))
    if progress.first_entropy is None:
        progress.first_entropy = entropy
    measured = {key: sum(r[key] for r in records) / len(records) for key in records[0]}
    if found.values is not None and returns is not None:
        measured["explained_variance"] = explained_variance(found.values, returns, found.mask)
    return {
        "reward": float(found.raw.mean()),
        "kl": kl,
        "entropy": entropy,
        "length": float(found.mask.sum(1).float().mean()),
        "ended": sum(item.ended for item in rollouts) / len(rollouts),
        "distinct_2": distinct_2([item.text for item in rollouts]),
        "penalty": progress.penalty.weight,
        **measured,
    }


def _advantages(
    found: Experience, rolling: RolloutOptions, options: PPOOptions, weight: float
) -> tuple[Tensor, Tensor | None]:
    """Advantages, and the returns that the value model learns (None without one)."""
    if options.advantage == "group":
        scaled = group_advantages(found.scores, rolling.samples, found.mask, scale=options.whiten)
        return scaled, None
    assert found.values is not None
    penalties = divergence(found.logprobs, found.reference, options.estimator)
    rewards = torch.where(found.mask, -weight * penalties, 0.0)
    last = found.mask.sum(1) - 1
    rewards[torch.arange(len(last), device=last.device), last] += found.scores
    advantages, returns = gae(
        rewards, found.values, found.mask, gamma=options.gamma, lam=options.lam
    )
    return whiten(advantages, found.mask) if options.whiten else advantages, returns


def _varied(scores: Tensor, rolling: RolloutOptions, options: PPOOptions) -> bool:
    """Whether answers differ in what they are worth, within a group where those are compared."""
    groups = scores.view(-1, rolling.samples) if options.advantage == "group" else scores[None]
    return bool((groups != groups[:, :1]).any())


def _update(
    models: Models,
    found: Experience,
    advantages: Tensor,
    returns: Tensor | None,
    chosen: Sequence[int],
    rolling: RolloutOptions,
    options: PPOOptions,
    valuing: ValueOptions,
    progress: Progress,
) -> dict[str, float]:
    """One optimizer step of policy and value on the `chosen` answers.

    Without dropout, as the answers were drawn and valued: before the first step the ratio is 1.
    """
    for trainee in (models.policy, models.value):
        if trainee is not None:
            trainee.learn_without_dropout()
    weight = progress.penalty.weight
    measured = _policy_gradients(models, found, advantages, chosen, rolling, options, weight)
    if models.value is not None and returns is not None:
        measured |= _value_gradients(models, models.value, found, returns, chosen, valuing)
    share = _RATES.get(models.policy.adapter.method, RATE)
    norm = models.policy.update(share if options.learning_rate is None else 1.0)
    if models.value is not None:
        norm += models.value.update()
    return {**measured, "gradient_norm": norm}


def _policy_gradients(
    models: Models,
    found: Experience,
    advantages: Tensor,
    chosen: Sequence[int],
    rolling: RolloutOptions,
    options: PPOOptions,
    weight: float,
) -> dict[str, float]:
    """Gradients of the policy's loss on the `chosen` answers, pass by pass; what was measured."""
    base, adapter = models.base, models.policy.adapter
    by_answer = options.advantage == "group"
    measured = dict.fromkeys(("policy_loss", "clip_fraction", "moved"), 0.0)
    rows = [found.rollouts[index].tokens.written_by(POLICY) for index in chosen]
    for group in packs([[row] for row in rows], pack_tokens(base.device)):
        output, placed = read_rows(
            base,
            [rows[index] for index in group],
            {POLICY: adapter.contribution()},
            temperature=rolling.temperature,
        )
        logprobs = -tokens_by_row(output.losses, placed.row, range(len(group)))
        mine = [chosen[index] for index in group]
        mask, longest = _mask(found, mine)
        surrogate = policy_loss(
            logprobs,
            found.logprobs[mine, :longest],
            advantages[mine, :longest],
            mask,
            clip=options.clip_range,
            by_answer=by_answer,
        )
        loss = surrogate.loss
        if by_answer:
            # GRPO has the divergence in its loss (Shao et al. 2024, equations 3 and 4).
            far = divergence(logprobs, found.reference[mine, :longest], options.estimator)
            loss = loss + weight * masked_mean(far, mask, by_answer=True)
        share = len(group) / len(chosen) if by_answer else _share(found, mine, chosen)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        measured["policy_loss"] += share * float(surrogate.loss.detach())
        measured["clip_fraction"] += share * float(surrogate.clip_fraction)
        measured["moved"] += share * float(surrogate.moved)
    return measured


def _value_gradients(
    models: Models,
    value: Trainee,
    found: Experience,
    returns: Tensor,
    chosen: Sequence[int],
    valuing: ValueOptions,
) -> dict[str, float]:
    """Gradients of the value model's loss on the `chosen` answers, pass by pass; the loss."""
    base, total = models.base, 0.0
    rows = [found.rollouts[index].tokens.valued_by(VALUE) for index in chosen]
    for group in packs([[row] for row in rows], pack_tokens(base.device)):
        output, placed = read_rows(
            base,
            [rows[index] for index in group],
            {VALUE: value.adapter.contribution()},
            trunk=found.trunk,
        )
        values = tokens_by_row(
            value.head(output.states), placed.hidden_state_row, range(len(group))
        )
        mine = [chosen[index] for index in group]
        mask, longest = _mask(found, mine)
        assert found.values is not None
        error = value_loss(
            values,
            found.values[mine, :longest],
            returns[mine, :longest],
            mask,
            clip=valuing.value_clip,
        )
        share = _share(found, mine, chosen)
        (share * error).backward()  # type: ignore[no-untyped-call]
        total += share * float(error.detach())
    return {"value_loss": total}


def _mask(found: Experience, answers: Sequence[int]) -> tuple[Tensor, int]:
    """Where these answers have a token, [answers, longest], and the longest one's length."""
    mask = found.mask[list(answers)]
    longest = int(mask.sum(1).max())
    return mask[:, :longest], longest


def _share(found: Experience, answers: Sequence[int], chosen: Sequence[int]) -> float:
    """The share that a pass's tokens have of those of the whole step."""
    part, whole = (float(found.mask[list(items)].sum()) for items in (answers, chosen))
    return part / whole


def held_out_objective(
    models: Models,
    prompts: Sequence[Prompt],
    rolling: RolloutOptions,
    progress: Progress,
    *,
    seed: int,
) -> tuple[dict[str, float], Experience]:
    """The policy on prompts it does not learn from, drawn with a fixed seed: mean reward, KL, and
    what PPO maximises, their difference with the penalty's weight (Ouyang et al. 2022, equation 2).
    """
    how = sampling(rolling, seed)
    rollouts = roll_out(models.base, models.policy.adapter, models.template, prompts, how)
    found = experience(replace(models, value=None), rollouts, rolling)  # nobody asks for values
    reward, kl = float(found.raw.mean()), float(found.divergences.mean())
    record = {
        "eval_reward": reward,
        "eval_kl": kl,
        "eval_objective": reward - progress.penalty.weight * kl,
        "eval_deviation": float(found.raw.std(correction=0)),
        "eval_distinct_2": distinct_2([item.text for item in rollouts]),
        "eval_length": float(found.mask.sum(1).float().mean()),
    }
    return record, found


def models_state(models: Models, progress: Progress) -> dict[str, Any]:
    """All that a checkpoint holds of the models and how far they have come."""
    return {
        "policy": models.policy.state(),
        "value": None if models.value is None else models.value.state(),
        "step": progress.step,
        "penalty": progress.penalty.weight,
        "first_entropy": progress.first_entropy,
        "best": progress.best,
        "stopped": progress.stopped,
        "judged": progress.judged,
        "judgements": progress.judgements,
        "varied": progress.varied,
    }


def load_models(models: Models, progress: Progress, state: Mapping[str, Any]) -> None:
    """Go on from a state."""
    models.policy.load(state["policy"])
    if models.value is not None:
        models.value.load(state["value"])
    progress.step = state["step"]
    progress.penalty.weight = state["penalty"]
    progress.first_entropy = state["first_entropy"]
    progress.best = state["best"]
    progress.stopped = state["stopped"]
    progress.judged = state["judged"]
    progress.judgements = state.get("judgements", {})  # not in format 1
    progress.varied = state.get("varied", True)  # not in format 1
