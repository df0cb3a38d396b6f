"""Direct preference optimisation: a policy learns from pairs, without a reward model."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import by_row, packs
from onebase.align.losses import DPOLoss, dpo_loss
from onebase.align.preference_data import PreferenceData, PreferenceRow, load_rows, preference_data
from onebase.align.run import AlignRun, AlignWatcher, carried_out, planned
from onebase.align.task import AlignJob, begin_from, config_of, pinned, store_aligned
from onebase.align.trainee import RATE, Trainee
from onebase.align.unlearned import no_gradient, nothing_better
from onebase.engine.rows import read_rows
from onebase.model.base import Base
from onebase.training.batch_sampler import Order
from onebase.training.job import TrainOptions
from onebase.training.job_state import schedule
from onebase.training.loop import pack_tokens

POLICY, REFERENCE = "policy", "reference"


class DPOOptions(BaseModel):
    """How a policy learns from pairs; a step takes `batch_size` of them. `beta` is the
    strength of the KL penalty; `label_smoothing` the assumed share of flipped labels.
    `learning_rate` None is a tenth of the method's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(1, ge=1, le=1000)
    batch_size: int = Field(8, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    warmup: int = Field(5, ge=0)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    held_out: float = Field(0.1, gt=0, lt=1)
    max_tokens: int = Field(512, ge=8)


def train_dpo(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    watcher: AlignWatcher | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Learn from pairs and store the policy as the task's next version; the reference is the policy
    as it begins, scored in the same passes.

    Given again after an interruption it goes on; `run_id` is the one run that it may go on with.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    source = load_rows(job, ("pairs",))
    options = job.options(job.method or "lora", DPOOptions)  # the same for every method
    begun = begin_from(job, base, workspace, max_tokens=options.max_tokens)
    method = begun.adapter.method
    job.check_settings(method, DPOOptions)
    job = pinned(job, begun)
    config = config_of("dpo", job, base, [options], [source.sha256])
    plan = planned(config, workspace, restart=restart, only=run_id)
    begun = begun.at(plan.moment)
    data = preference_data(job, base, source, begun, options.held_out)
    plan = plan.rendered(begun.template, data.digest())
    training = job.training_job(method, options.learning_rate)
    trainee = Trainee(
        base, begun.adapter, training, clip=options.clip, weight_decay=options.weight_decay
    )
    learning = _Learning(trainee, data, options, job.seed, _share(options))
    with carried_out(plan, base, workspace, seed=job.seed, watcher=watcher) as run:
        run.restore(learning.load, begun.template)
        run.tell(job.task, data.bad, data.notes)
        run.watcher.began(f"{job.task} (DPO, {method})", learning.step, learning.total)
        if not learning.first:
            _judge(learning, base, run)
        while learning.step < learning.total:
            run.between(learning.state)
            run.measured(learning.step, **_step(learning, base))
            if learning.step % learning.an_epoch == 0:
                _judge(learning, base, run)
                run.between(learning.state, due=True)
        trainee.take_best()
        unlearned = learning.unlearned()
        if learning.best.get("step") == 0 and not unlearned:
            run.note(nothing_better())
        stored = store_aligned(
            base,
            workspace,
            run,
            job.task,
            trainee.adapter,
            {
                "template": begun.template.config(),
                "aligned": "dpo",
                "reference": begun.stored.name if begun.stored else None,
                "data": str(job.data),
                "data_sha256": source.sha256,
                "metrics": {
                    "trainable": trainee.adapter.trainable(),
                    "eval_loss": learning.best["eval_loss"],
                    "base_eval_loss": learning.first["eval_loss"],
                    "pair_accuracy": learning.best["pair_accuracy"],
                    "margin": learning.best["margin"],
                    "steps": learning.step,
                    "seconds": run.seconds,
                },
            },
            unlearned=unlearned,
        )
        run.summary = {"adapters": [stored.name], **learning.best}
    return stored


def _share(options: DPOOptions) -> float:
    """What the method's learning rates are multiplied by."""
    return RATE if options.learning_rate is None else 1.0


class _Learning:
    """What changes from step to step. `known` has the reference's log-probabilities of every training
    row's answers once they have been seen, [rows, 2].
    """

    def __init__(
        self,
        trainee: Trainee,
        data: PreferenceData,
        options: DPOOptions,
        seed: int,
        share: float,
    ) -> None:
        self.trainee = trainee
        self.reference = trainee.fixed()
        self.data = data
        self.options = options
        self.step = 0
        self.first: dict[str, float] = {}
        self.best: dict[str, float] = {"eval_loss": math.inf}
        self.known = torch.full((len(data.train), 2), math.nan)
        self._share = share
        self._order = Order(list(range(len(data.train))), options.batch_size, seed)
        self.an_epoch = self._order.steps
        self.total = self.an_epoch * options.epochs

    def next_rows(self) -> list[int]:
        """Which training rows the next step takes."""
        return next(self._order)

    def factor(self) -> float:
        """The factor on the method's learning rates now."""
        plan = TrainOptions(warmup=self.options.warmup)
        return self._share * schedule(plan, self.step, self.total)

    def unlearned(self) -> str:
        """Why nothing was learned; empty where something was."""
        return "" if self.trainee.moved else no_gradient()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "first": self.first,
            "best": self.best,
            "known": self.known,
            "order": self._order.state(),
            "trainee": self.trainee.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step, self.first, self.best = state["step"], state["first"], state["best"]
        self.known = state["known"]
        self._order.load(state["order"])
        self.trainee.load(state["trainee"])


def _step(learning: _Learning, base: Base) -> dict[str, float]:
    """One optimizer step; what was measured of its pairs."""
    indices = learning.next_rows()
    rows = [learning.data.train[index] for index in indices]
    learning.trainee.adapter.train()
    total, right, margin = 0.0, 0.0, 0.0
    known = learning.known[indices]
    for group, losses, reference in _passes(learning, base, rows, known, pack_tokens(base.device)):
        (losses.losses.sum() / len(rows)).backward()
        for place, values in zip(group, reference.tolist(), strict=True):
            learning.known[indices[place]] = torch.tensor(values)
        total += float(losses.losses.detach().sum())
        right += float((losses.chosen > losses.rejected).float().sum())
        margin += float((losses.chosen - losses.rejected).sum())
    learning.trainee.update(learning.factor())
    learning.step += 1
    count = len(rows)
    return {"loss": total / count, "pair_accuracy": right / count, "margin": margin / count}


def _passes(
    learning: _Learning,
    base: Base,
    rows: Sequence[PreferenceRow],
    known: Tensor,
    tokens: int,
) -> Any:
    """Pass by pass: which of `rows`, their losses, and the reference's log-probabilities of their
    answers, [rows, 2]. Rows that the reference was not asked for yet have NaN in `known`.
    """
    units = []
    for row, seen in zip(rows, known, strict=True):
        unit = [answer.written_by(POLICY) for answer in row.answers]
        if bool(seen.isnan().any()):
            unit += [answer.written_by(REFERENCE) for answer in row.answers]
        units.append(unit)
    for group in packs(units, tokens):
        placed = [row for index in group for row in units[index]]
        own = {POLICY: learning.trainee.adapter.contribution(), REFERENCE: learning.reference}
        output, where = read_rows(base, placed, own)
        sums = by_row(output, where, len(placed))
        at, policy, reference = 0, [], []
        for index in group:
            policy.append(sums[at : at + 2])
            asked = len(units[index]) == 4
            theirs = sums[at + 2 : at + 4].detach() if asked else known[index].to(sums)
            reference.append(theirs)
            at += len(units[index])
        both, theirs = torch.stack(policy), torch.stack(reference)
        losses: DPOLoss = dpo_loss(
            both[:, 0],
            both[:, 1],
            theirs[:, 0],
            theirs[:, 1],
            beta=learning.options.beta,
            label_smoothing=learning.options.label_smoothing,
        )
        yield group, losses, theirs.cpu()


def _judge(learning: _Learning, base: Base, run: AlignRun) -> None:
    """The held-out loss, accuracy and margin; keeps the best state."""
    rows = learning.data.held_out
    learning.trainee.adapter.eval()
    losses, chosen, rejected = [], [], []
    unknown = torch.full((len(rows), 2), math.nan)
    with torch.no_grad():
        for _, found, _ in _passes(learning, base, rows, unknown, 2 * pack_tokens(base.device)):
            losses.append(found.losses)
            chosen.append(found.chosen)
            rejected.append(found.rejected)
    margin = torch.cat(chosen) - torch.cat(rejected)
    record = {
        "eval_loss": float(torch.cat(losses).mean()),
        "pair_accuracy": float((margin > 0).float().mean()),
        "margin": float(margin.mean()),
    }
    if not learning.first:
        learning.first = record
    best = record["eval_loss"] < learning.best["eval_loss"]
    if best:
        learning.best = {**record, "step": learning.step}
        learning.trainee.keep_best()
    run.measured(learning.step, **record, best=best)
