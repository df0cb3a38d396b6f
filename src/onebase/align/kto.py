"""Kahneman-Tversky optimisation: a policy learns from single answers, judged good or bad."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import Answered, by_row, packs
from onebase.align.losses import KTOLoss, kto_loss
from onebase.align.preference_data import PreferenceData, PreferenceRow, load_rows, preference_data
from onebase.align.run import AlignRun, AlignWatcher, carried_out, planned
from onebase.align.task import AlignJob, begin_from, config_of, pinned, store_aligned
from onebase.align.trainee import RATE, Trainee
from onebase.align.unlearned import no_gradient, nothing_better, one_judgement
from onebase.engine.rows import TokenRow, read_rows
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.batch_sampler import Order
from onebase.training.job import TrainOptions
from onebase.training.job_state import schedule
from onebase.training.loop import pack_tokens

POLICY, REFERENCE = "policy", "reference"


class KTOOptions(BaseModel):
    """KTO's settings. A step takes `batch_size` answers, at least two: the reference point is estimated
    by pairing each prompt with an answer to another one. `beta` is the strength of the KL penalty;
    `desirable` and `undesirable` are the weights of good and bad answers, for data with many more of
    one kind. `learning_rate` None is a tenth of the method's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(1, ge=1, le=1000)
    batch_size: int = Field(8, ge=2)
    learning_rate: float | None = Field(None, gt=0)
    beta: float = Field(0.1, gt=0)
    desirable: float = Field(1.0, gt=0)
    undesirable: float = Field(1.0, gt=0)
    warmup: int = Field(5, ge=0)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    held_out: float = Field(0.1, gt=0, lt=1)
    max_tokens: int = Field(512, ge=8)


def train_kto(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    watcher: AlignWatcher | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Learn from judged answers and store the policy as the task's next version.

    Given again after an interruption it goes on; `run_id` is the one run that it may go on with.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    source = load_rows(job, ("judged",))
    options = job.options(job.method or "lora", KTOOptions)  # the same for every method
    begun = begin_from(job, base, workspace, max_tokens=options.max_tokens)
    method = begun.adapter.method
    job.check_settings(method, KTOOptions)
    job = pinned(job, begun)
    config = config_of("kto", job, base, [options], [source.sha256])
    plan = planned(config, workspace, restart=restart, only=run_id)
    begun = begun.at(plan.moment)
    data = preference_data(job, base, source, begun, options.held_out)
    plan = plan.rendered(begun.template, data.digest())
    training = job.training_job(method, options.learning_rate)
    trainee = Trainee(
        base, begun.adapter, training, clip=options.clip, weight_decay=options.weight_decay
    )
    learning = _Learning(trainee, data, options, job.seed)
    with carried_out(plan, base, workspace, seed=job.seed, watcher=watcher) as run:
        run.restore(learning.load, begun.template)
        run.tell(job.task, data.bad, [*data.notes, *learning.one_judgement()])
        run.watcher.began(f"{job.task} (KTO, {method})", learning.step, learning.total)
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
                "aligned": "kto",
                "reference": begun.stored.name if begun.stored else None,
                "data": str(job.data),
                "data_sha256": source.sha256,
                "metrics": {
                    "trainable": trainee.adapter.trainable(),
                    "eval_loss": learning.best["eval_loss"],
                    "base_eval_loss": learning.first["eval_loss"],
                    "reward_good": learning.best["reward_good"],
                    "reward_bad": learning.best["reward_bad"],
                    "steps": learning.step,
                    "seconds": run.seconds,
                },
            },
            unlearned=unlearned,
        )
        run.summary = {"adapters": [stored.name], **learning.best}
    return stored


class _Learning:
    """What changes from step to step."""

    def __init__(
        self, trainee: Trainee, data: PreferenceData, options: KTOOptions, seed: int
    ) -> None:
        self.trainee = trainee
        self.reference = trainee.fixed()
        self.data = data
        self.elsewhere = _of_two_prompts(data)
        self.options = options
        self.step = 0
        self.first: dict[str, float] = {}
        self.best: dict[str, float] = {"eval_loss": math.inf}
        self._order = Order(data.train, options.batch_size, seed)
        self.an_epoch = self._order.steps
        self.total = self.an_epoch * options.epochs

    def next_rows(self) -> list[PreferenceRow]:
        """The rows of the next step."""
        return next(self._order)

    def factor(self) -> float:
        """The factor on the method's learning rates now."""
        share = RATE if self.options.learning_rate is None else 1.0
        return share * schedule(TrainOptions(warmup=self.options.warmup), self.step, self.total)

    def one_judgement(self) -> list[str]:
        """What to say of rows to learn from that are all good, or all bad."""
        judged = {row.rating > 0 for row in self.data.train}
        return [one_judgement(*judged)] if len(judged) == 1 else []

    def unlearned(self) -> str:
        """Why nothing was learned; empty where something was."""
        if not self.trainee.moved:
            return no_gradient()
        return next(iter(self.one_judgement()), "")

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "first": self.first,
            "best": self.best,
            "order": self._order.state(),
            "trainee": self.trainee.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step, self.first, self.best = state["step"], state["first"], state["best"]
        self._order.load(state["order"])
        self.trainee.load(state["trainee"])


@dataclass(frozen=True)
class _Fixed:
    """What has no gradient in a step: the reference's log-probabilities of the answers, and both
    models' of answers to other prompts, all [rows].
    """

    reference: Tensor
    mismatched: Tensor
    mismatched_reference: Tensor


def _step(learning: _Learning, base: Base) -> dict[str, float]:
    """One optimizer step; what was measured of its rows."""
    rows = learning.next_rows()
    fixed = _without_gradient(learning, base, rows)
    learning.trainee.adapter.train()
    total = 0.0
    rewards = torch.zeros(len(rows))
    units = [[row.answers[0].written_by(POLICY)] for row in rows]
    for group in packs(units, pack_tokens(base.device)):
        contribution = learning.trainee.adapter.contribution()
        sums = _sums(base, [units[index][0] for index in group], {POLICY: contribution})
        found = _losses(learning, rows, group, sums, fixed)
        (found.losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        total += float(found.losses.detach().sum())
        rewards[group] = found.rewards.cpu()
    learning.trainee.update(learning.factor())
    learning.step += 1
    return {"loss": total / len(rows), **_by_judgement(rows, rewards)}


def _without_gradient(learning: _Learning, base: Base, rows: Sequence[PreferenceRow]) -> _Fixed:
    """Scores every answer by the reference, and every answer to another prompt by both models."""
    learning.trainee.adapter.eval()
    answers = [row.answers[0] for row in rows]
    others = mismatched(answers, learning.elsewhere)
    units = [
        [one.written_by(REFERENCE), other.written_by(POLICY), other.written_by(REFERENCE)]
        for one, other in zip(answers, others, strict=True)
    ]
    found = []
    with torch.no_grad():
        own = {POLICY: learning.trainee.adapter.contribution(), REFERENCE: learning.reference}
        for group in packs(units, 2 * pack_tokens(base.device)):
            found.append(_sums(base, [row for index in group for row in units[index]], own))
    return _Fixed(*torch.cat(found).view(-1, 3).unbind(1))


def mismatched(answers: Sequence[Answered], elsewhere: Sequence[Answered]) -> list[Answered]:
    """Every prompt with an answer to another prompt, from which the reference point is estimated
    (Ethayarajh et al. 2024, section 4.1): that of the next row with another prompt, or the first such
    one of `elsewhere`, where a step or an evaluation has none.
    """
    count = len(answers)
    found = []
    for at, one in enumerate(answers):
        around = (answers[(at + step) % count] for step in range(1, count))
        other = next(item for item in chain(around, elsewhere) if item.prompt != one.prompt)
        found.append(Answered(one.prompt, other.answer))
    return found


def _of_two_prompts(data: PreferenceData) -> list[Answered]:
    """Two answers of the data to different prompts. Raises DataError where there are none."""
    answers = [row.answers[0] for row in (*data.train, *data.held_out)]
    other = next((item for item in answers if item.prompt != answers[0].prompt), None)
    if other is None:
        raise DataError(
            say(
                f"Every answer in {data.source.path} is to the same prompt: KTO compares it with "
                "answers to others.",
                f"{data.source.path} 中的回答全部对应同一个提示：KTO 需要与其他提示的回答相比较。",
            ),
            say("Add answers to other prompts.", "请增加其他提示的回答。"),
        )
    return [answers[0], other]


def _sums(base: Base, rows: Sequence[TokenRow], own: dict[str, Contribution]) -> Tensor:
    """The log-probabilities of whole answers, [rows]."""
    output, placed = read_rows(base, rows, own)
    return by_row(output, placed, len(rows))


def _losses(
    learning: _Learning,
    rows: Sequence[PreferenceRow],
    group: Sequence[int],
    sums: Tensor,
    fixed: _Fixed,
) -> KTOLoss:
    """Of those of `rows` in one pass; the reference point is of all of them."""
    options = learning.options
    own = torch.tensor(group, device=sums.device)
    return kto_loss(
        sums,
        fixed.reference[own],
        torch.tensor([rows[index].rating > 0 for index in group], device=sums.device),
        fixed.mismatched,
        fixed.mismatched_reference,
        beta=options.beta,
        desirable=options.desirable,
        undesirable=options.undesirable,
    )


def _by_judgement(rows: Sequence[PreferenceRow], rewards: Tensor) -> dict[str, float]:
    """The mean implicit reward of good and of bad answers; 0 where there is none."""
    good = torch.tensor([row.rating > 0 for row in rows])
    means = [float(rewards[own].mean()) if bool(own.any()) else 0.0 for own in (good, ~good)]
    return {"reward_good": means[0], "reward_bad": means[1]}


def _judge(learning: _Learning, base: Base, run: AlignRun) -> None:
    """The held-out loss and implicit rewards; keeps the best state."""
    rows = learning.data.held_out
    fixed = _without_gradient(learning, base, rows)
    with torch.no_grad():
        own = {POLICY: learning.trainee.adapter.contribution()}
        units = [[row.answers[0].written_by(POLICY)] for row in rows]
        groups = list(packs(units, 2 * pack_tokens(base.device)))
        found = [
            _losses(
                learning,
                rows,
                group,
                _sums(base, [units[index][0] for index in group], own),
                fixed,
            )
            for group in groups
        ]
    losses = torch.cat([item.losses for item in found])
    rewards = torch.cat([item.rewards for item in found]).cpu()
    record = {"eval_loss": float(losses.mean()), **_by_judgement(rows, rewards)}
    if not learning.first:
        learning.first = record
    best = record["eval_loss"] < learning.best["eval_loss"]
    if best:
        learning.best = {**record, "step": learning.step}
        learning.trainee.keep_best()
    run.measured(learning.step, **record, best=best)
