"""Direct preference optimisation: a policy is trained on pairs of answers, without a reward model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from onebase.adapters.contribution import Contribution
from onebase.adapters.option import option
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import packs, sum_by_row
from onebase.align.job import AlignJob
from onebase.align.preference_data import PreferenceRow
from onebase.align.preference_training import (
    BETA,
    PreferenceOptions,
    PreferenceTraining,
    set_up,
)
from onebase.engine.rows import read_rows
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.training.loop import pack_tokens

POLICY, REFERENCE = "policy", "reference"


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


class DPOOptions(PreferenceOptions):
    """How a policy is trained on pairs."""

    beta: float = BETA
    label_smoothing: float = option(
        0.0,
        "Assumed share of pairs whose labels are swapped (conservative DPO).",
        "假定被标反的偏好对所占比例（保守 DPO）。",
        ge=0,
        lt=0.5,
    )


def train_dpo(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Train on pairs and store the policy as the task's next version. The reference is the policy as it
    starts; its answers are scored in the same passes.

    An interrupted run of the same job continues, unless `restart`; with a `run_id` it must be that run.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    setup = set_up(
        "dpo", job, DPOOptions, ("pairs",), base, workspace, restart=restart, run_id=run_id
    )
    training = PreferenceTraining(base, setup)
    training.reference_logprobs = torch.full((len(setup.data.train), 2), math.nan)
    reference = training.trainable.frozen()
    with setup.session(base, workspace, observer) as run:
        training.train(
            run,
            f"DPO, {setup.start.adapter.method}",
            lambda batch: _step(training, reference, batch),
            lambda rows: _evaluate(training, reference, rows),
        )
        return training.store_policy(run, workspace, "dpo", ("pair_accuracy", "margin"))


def _step(
    training: PreferenceTraining[DPOOptions], reference: Contribution, batch: list[int]
) -> dict[str, float]:
    """Accumulate the gradients of a batch of pairs; returns what was measured."""
    rows = [training.data.train[index] for index in batch]
    known = training.reference_logprobs
    assert known is not None
    training.trainable.adapter.train()
    loss, correct, margin = 0.0, 0.0, 0.0
    tokens = pack_tokens(training.base.device)
    for group, pairs, logprobs in _passes(training, reference, rows, known[batch], tokens):
        (pairs.losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        known[[batch[index] for index in group]] = logprobs
        loss += float(pairs.losses.detach().sum())
        correct += float((pairs.chosen > pairs.rejected).float().sum())
        margin += float((pairs.chosen - pairs.rejected).sum())
    count = len(rows)
    return {"loss": loss / count, "pair_accuracy": correct / count, "margin": margin / count}


def _evaluate(
    training: PreferenceTraining[DPOOptions], reference: Contribution, rows: list[PreferenceRow]
) -> dict[str, float]:
    """The loss, accuracy and margin of held-out pairs."""
    training.trainable.adapter.eval()
    unknown = torch.full((len(rows), 2), math.nan)
    tokens = 2 * pack_tokens(training.base.device)
    with torch.no_grad():
        passes = [pairs for _, pairs, _ in _passes(training, reference, rows, unknown, tokens)]
    margin = torch.cat([p.chosen for p in passes]) - torch.cat([p.rejected for p in passes])
    return {
        "eval_loss": float(torch.cat([p.losses for p in passes]).mean()),
        "pair_accuracy": float((margin > 0).float().mean()),
        "margin": float(margin.mean()),
    }


def _passes(
    training: PreferenceTraining[DPOOptions],
    reference: Contribution,
    rows: Sequence[PreferenceRow],
    known: Tensor,
    tokens: int,
) -> Iterator[tuple[range, DPOLoss, Tensor]]:
    """For every pass: the indices of its rows, their losses, and the reference's log-probabilities of
    their answers, [rows, 2]. The reference reads only rows that are NaN in `known`.
    """
    units = []
    for row, logprobs in zip(rows, known, strict=True):
        unit = [answer.logprob_row(POLICY) for answer in row.answers]
        if bool(logprobs.isnan().any()):
            unit += [answer.logprob_row(REFERENCE) for answer in row.answers]
        units.append(unit)
    for group in packs(units, tokens):
        token_rows = [row for index in group for row in units[index]]
        models = {POLICY: training.trainable.contribution(), REFERENCE: reference}
        output, placed = read_rows(training.base, token_rows, models)
        sums = sum_by_row(output, placed, len(token_rows))
        at, policy_sums, reference_sums = 0, [], []
        for index in group:
            policy_sums.append(sums[at : at + 2])
            with_reference = len(units[index]) == 4
            reference_sums.append(
                sums[at + 2 : at + 4].detach() if with_reference else known[index].to(sums)
            )
            at += len(units[index])
        policy, fixed = torch.stack(policy_sums), torch.stack(reference_sums)
        losses = dpo_loss(
            policy[:, 0],
            policy[:, 1],
            fixed[:, 0],
            fixed[:, 1],
            beta=training.options.beta,
            label_smoothing=training.options.label_smoothing,
        )
        yield group, losses, fixed.cpu()
