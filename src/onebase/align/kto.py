"""Kahneman-Tversky optimisation: a policy is trained on single answers, labelled good or bad."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.adapters.option import option
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import PromptAnswer, packs, sum_by_row
from onebase.align.job import AlignJob
from onebase.align.preference_data import PreferenceData, PreferenceRow
from onebase.align.preference_training import (
    BETA,
    PreferenceOptions,
    PreferenceTraining,
    set_up,
)
from onebase.align.unlearned import one_label
from onebase.engine.rows import TokenRow, read_rows
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.training.loop import pack_tokens

POLICY, REFERENCE = "policy", "reference"


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


class KTOOptions(PreferenceOptions):
    """How a policy is trained on labelled answers."""

    batch_size: int = option(
        8,
        "Answers a step. At least two: each prompt is paired with an answer to another one.",
        "每步的回答数。至少为 2：每个提示要与另一提示的回答配对。",
        ge=2,
    )
    beta: float = BETA
    desirable: float = option(
        1.0,
        "Weight of good answers; raise it where the data has few of them.",
        "好回答的权重；数据中好回答较少时可调大。",
        gt=0,
    )
    undesirable: float = option(
        1.0,
        "Weight of bad answers; raise it where the data has few of them.",
        "坏回答的权重；数据中坏回答较少时可调大。",
        gt=0,
    )


def train_kto(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Train on labelled answers and store the policy as the task's next version. The reference is the
    policy as it starts.

    An interrupted run of the same job continues, unless `restart`; with a `run_id` it must be that run.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    setup = set_up(
        "kto", job, KTOOptions, ("judged",), base, workspace, restart=restart, run_id=run_id
    )
    training = PreferenceTraining(base, setup)
    kto = _KTO(training, training.trainable.frozen(), _of_two_prompts(setup.data))
    labels = {row.rating > 0 for row in setup.data.train}
    unlearned = one_label(*labels) if len(labels) == 1 else ""
    with setup.session(base, workspace, observer) as run:
        training.train(
            run,
            f"KTO, {setup.start.adapter.method}",
            lambda batch: _step(kto, [setup.data.train[index] for index in batch]),
            lambda rows: _evaluate(kto, rows),
            notes=[unlearned] if unlearned else [],
        )
        metrics = ("reward_good", "reward_bad")
        return training.store_policy(run, workspace, "kto", metrics, unlearned=unlearned)


@dataclass(frozen=True)
class _KTO:
    """The training, the reference model, and two answers to different prompts (see `mismatched`)."""

    training: PreferenceTraining[KTOOptions]
    reference: Contribution
    fallback: list[PromptAnswer]


@dataclass(frozen=True)
class _WithoutGradient:
    """The reference's log-probabilities of the answers, and both models' log-probabilities of answers to
    other prompts, all [rows].
    """

    reference: Tensor
    mismatched: Tensor
    mismatched_reference: Tensor


def _step(kto: _KTO, rows: Sequence[PreferenceRow]) -> dict[str, float]:
    """Accumulate the gradients of a batch; returns what was measured."""
    fixed = _without_gradient(kto, rows)
    kto.training.trainable.adapter.train()
    loss = 0.0
    rewards = torch.zeros(len(rows))
    for group, result in _passes(kto, rows, fixed, pack_tokens(kto.training.base.device)):
        (result.losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        loss += float(result.losses.detach().sum())
        rewards[group] = result.rewards.cpu()
    return {"loss": loss / len(rows), **_rewards_by_label(rows, rewards)}


def _evaluate(kto: _KTO, rows: Sequence[PreferenceRow]) -> dict[str, float]:
    """The loss and implicit rewards of held-out rows."""
    fixed = _without_gradient(kto, rows)
    with torch.no_grad():
        tokens = 2 * pack_tokens(kto.training.base.device)
        results = [result for _, result in _passes(kto, rows, fixed, tokens)]
    losses = torch.cat([result.losses for result in results])
    rewards = torch.cat([result.rewards for result in results]).cpu()
    return {"eval_loss": float(losses.mean()), **_rewards_by_label(rows, rewards)}


def _passes(
    kto: _KTO, rows: Sequence[PreferenceRow], fixed: _WithoutGradient, tokens: int
) -> Iterator[tuple[range, KTOLoss]]:
    """For every pass: the indices of its rows, and their losses; the reference point is that of all rows."""
    options = kto.training.options
    token_rows = [row.answers[0].logprob_row(POLICY) for row in rows]
    for group in packs([[row] for row in token_rows], tokens):
        policy = {POLICY: kto.training.trainable.contribution()}
        sums = _logprobs(kto.training.base, [token_rows[index] for index in group], policy)
        indices = torch.tensor(group, device=sums.device)
        yield (
            group,
            kto_loss(
                sums,
                fixed.reference[indices],
                torch.tensor([rows[index].rating > 0 for index in group], device=sums.device),
                fixed.mismatched,
                fixed.mismatched_reference,
                beta=options.beta,
                desirable=options.desirable,
                undesirable=options.undesirable,
            ),
        )


def _without_gradient(kto: _KTO, rows: Sequence[PreferenceRow]) -> _WithoutGradient:
    """Score every answer by the reference, and every answer to another prompt by both models."""
    kto.training.trainable.adapter.eval()
    answers = [row.answers[0] for row in rows]
    others = mismatched(answers, kto.fallback)
    units = [
        [answer.logprob_row(REFERENCE), other.logprob_row(POLICY), other.logprob_row(REFERENCE)]
        for answer, other in zip(answers, others, strict=True)
    ]
    sums = []
    with torch.no_grad():
        models = {POLICY: kto.training.trainable.contribution(), REFERENCE: kto.reference}
        for group in packs(units, 2 * pack_tokens(kto.training.base.device)):
            sums.append(
                _logprobs(kto.training.base, [row for at in group for row in units[at]], models)
            )
    return _WithoutGradient(*torch.cat(sums).view(-1, 3).unbind(1))


def mismatched(
    answers: Sequence[PromptAnswer], fallback: Sequence[PromptAnswer]
) -> list[PromptAnswer]:
    """Every prompt with an answer to another prompt, from which the reference point is estimated
    (Ethayarajh et al. 2024, section 4.1): the answer of the next row with another prompt, or, where the
    batch has none, of the first such one in `fallback`.
    """
    count = len(answers)
    pairs = []
    for at, one in enumerate(answers):
        following = (answers[(at + offset) % count] for offset in range(1, count))
        other = next(item for item in chain(following, fallback) if item.prompt != one.prompt)
        pairs.append(PromptAnswer(one.prompt, other.answer))
    return pairs


def _of_two_prompts(data: PreferenceData) -> list[PromptAnswer]:
    """Two answers of the data to different prompts. Raises DataError where there are none."""
    answers = [row.answers[0] for row in (*data.train, *data.held_out)]
    other = next((item for item in answers if item.prompt != answers[0].prompt), None)
    if other is None:
        raise DataError(
            say(
                f"Every answer in {data.source.path} is to the same prompt, but KTO compares it with "
                "answers to other prompts.",
                f"{data.source.path} 中的回答全部对应同一个提示：KTO 需要与其他提示的回答相比较。",
            ),
            say("Add answers to other prompts.", "请增加其他提示的回答。"),
        )
    return [answers[0], other]


def _logprobs(base: Base, rows: Sequence[TokenRow], models: Mapping[str, Contribution]) -> Tensor:
    """The log-probabilities of whole answers, [rows]."""
    output, placed = read_rows(base, rows, models)
    return sum_by_row(output, placed, len(rows))


def _rewards_by_label(rows: Sequence[PreferenceRow], rewards: Tensor) -> dict[str, float]:
    """The mean implicit reward of good and of bad answers; 0 where there are none."""
    good = torch.tensor([row.rating > 0 for row in rows])
    means = [float(rewards[mask].mean()) if bool(mask.any()) else 0.0 for mask in (good, ~good)]
    return {"reward_good": means[0], "reward_bad": means[1]}
