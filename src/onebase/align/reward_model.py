"""Training a reward model: an adapter and a scalar head that score answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import packs
from onebase.align.losses import bradley_terry
from onebase.align.measures import ScoreReport, pairs_of, report
from onebase.align.preference_data import PreferenceData, PreferenceRow, load_rows, preference_data
from onebase.align.run import AlignRun, AlignWatcher, carried_out, planned
from onebase.align.task import AlignJob, begin_from, config_of, store_aligned
from onebase.align.trainee import Trainee
from onebase.align.unlearned import no_gradient
from onebase.data.template import Template
from onebase.engine.rows import TokenRow, read_rows
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.batch_sampler import Order
from onebase.training.job import TrainOptions
from onebase.training.job_state import schedule
from onebase.training.loop import pack_tokens

DEFAULT_METHOD = "lora"
SCORE = "reward"  # the one adapter in these passes


class RewardOptions(BaseModel):
    """How a reward model learns. A step takes `batch_size` rows (pairs, or rated answers).
    `learning_rate` None is the method's own; `head_rate` the head's. Held-out ratings that differ by
    `margin` or more are the pairs that accuracy counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(2, ge=1, le=1000)
    batch_size: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    head_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(5, ge=0)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    held_out: float = Field(0.1, gt=0, lt=1)
    max_tokens: int = Field(256, ge=8)
    margin: float = Field(1.0, gt=0)


def train_reward(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    watcher: AlignWatcher | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Learn to score answers from pairs (Bradley-Terry loss) or ratings (squared error, of ratings
    brought to mean 0 and deviation 1), and store the model as the next version of the task.

    Given again after an interruption it goes on; `run_id` is the one run that it may go on with.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    method = job.method or DEFAULT_METHOD
    job.check_settings(method, RewardOptions)
    options = job.options(method, RewardOptions)
    job = replace(job, method=method)
    source = load_rows(job, ("pairs", "ratings"))
    begun = begin_from(job, base, workspace, max_tokens=options.max_tokens, bare=source.bare)
    begun.adapter.head = ScalarHead(base.shape.hidden).to(base.device)
    config = config_of("reward", job, base, [options], [source.sha256])
    plan = planned(config, workspace, restart=restart, only=run_id)
    begun = begun.at(plan.moment)
    data = preference_data(job, base, source, begun, options.held_out, alone=True)
    plan = plan.rendered(begun.template, data.digest())
    trainee = Trainee(
        base,
        begun.adapter,
        job.training_job(method, options.learning_rate),
        clip=options.clip,
        weight_decay=options.weight_decay,
        head_rate=options.head_rate,
    )
    scale = Scale.of(data)
    learning = _Learning(trainee, data, scale, options, job.seed)
    with carried_out(plan, base, workspace, seed=job.seed, watcher=watcher) as run:
        run.restore(learning.load, begun.template)
        run.tell(job.task, data.bad, data.notes)
        run.watcher.began(f"{job.task} ({method})", learning.step, learning.total)
        while learning.step < learning.total:
            run.between(learning.state)
            loss = _step(learning, base)
            run.measured(learning.step, loss=loss)
            if learning.step % learning.an_epoch == 0:
                _judge(learning, base, run)
                run.between(learning.state, due=True)
        trainee.take_best()
        found = learning.report(base)
        stored = _store(job, base, workspace, begun.template, learning, found, run)
        run.summary = {"adapters": [stored.name], **found.to_dict()}
    return stored


@dataclass(frozen=True)
class Scale:
    """What ratings are brought to mean 0 and deviation 1 with."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, data: PreferenceData) -> "Scale":
        """Of the rows learned from."""
        ratings = torch.tensor([row.rating for row in data.train], dtype=torch.float64)
        deviation = float(ratings.std(correction=0))
        if data.source.kind == "ratings" and not deviation > 0:
            raise UsageError(
                say(
                    f"Every rating in {data.source.path} is {ratings[0]:g}.",
                    f"{data.source.path} 中的评分全部为 {ratings[0]:g}。",
                ),
                say("Give answers of different ratings.", "请提供评分不同的回答。"),
            )
        return cls(float(ratings.mean()), deviation or 1.0)


class _Learning:
    """What changes from step to step."""

    def __init__(
        self,
        trainee: Trainee,
        data: PreferenceData,
        scale: Scale,
        options: RewardOptions,
        seed: int,
    ) -> None:
        self.trainee = trainee
        self.data = data
        self.scale = scale
        self.options = options
        self.step = 0
        self.best_loss = math.inf
        self.best_report: ScoreReport | None = None  # a resumed run's may be of an earlier session
        self._order = Order(data.train, options.batch_size, seed)
        self.an_epoch = self._order.steps
        self.total = self.an_epoch * options.epochs

    def next_rows(self) -> list[PreferenceRow]:
        """The rows of the next step."""
        return next(self._order)

    def factor(self) -> float:
        """The factor on the learning rates now."""
        return schedule(TrainOptions(warmup=self.options.warmup), self.step, self.total)

    def report(self, base: Base) -> ScoreReport:
        """That of the best state, which the model is in."""
        if self.best_report is None:
            _, self.best_report = judged(
                base, self.trainee, self.data, self.scale, self.options.margin
            )
        return self.best_report

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "order": self._order.state(),
            "trainee": self.trainee.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step, self.best_loss = state["step"], state["best_loss"]
        self._order.load(state["order"])
        self.trainee.load(state["trainee"])


def _step(learning: _Learning, base: Base) -> float:
    """One optimizer step; returns the mean loss of its rows."""
    rows = learning.next_rows()
    learning.trainee.adapter.train()
    total = 0.0
    for scores, group in _scored(base, learning.trainee, rows, pack_tokens(base.device)):
        loss = _losses(scores, group, learning.scale).sum() / len(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    learning.trainee.update(learning.factor())
    learning.step += 1
    return total


def _losses(scores: Tensor, rows: Sequence[PreferenceRow], scale: Scale) -> Tensor:
    """The loss of every row from the scores of its answers, in order."""
    if len(rows[0].answers) == 2:
        return bradley_terry(scores[0::2], scores[1::2])
    wanted = torch.tensor([(row.rating - scale.mean) / scale.deviation for row in rows])
    return (scores - wanted.to(scores)).square()


def _scored(base: Base, trainee: Trainee, rows: Sequence[PreferenceRow], tokens: int) -> Any:
    """The scores of the rows' answers in order, pass by pass, with the rows of each pass."""
    units = [[answer.scored_by(SCORE) for answer in row.answers] for row in rows]
    for group in packs(units, tokens):
        placed: list[TokenRow] = [row for index in group for row in units[index]]
        output, _ = read_rows(base, placed, {SCORE: trainee.adapter.contribution()})
        yield trainee.head(output.states), [rows[index] for index in group]


def judged(
    base: Base, trainee: Trainee, data: PreferenceData, scale: Scale, margin: float
) -> tuple[float, ScoreReport]:
    """The held-out loss of the model as it is, and the report on its scores."""
    rows = data.held_out
    trainee.adapter.eval()
    with torch.no_grad():
        passes = list(_scored(base, trainee, rows, 2 * pack_tokens(base.device)))
        losses = torch.cat([_losses(scores, group, scale) for scores, group in passes])
    scores = torch.cat([scores for scores, _ in passes])
    if data.source.kind == "pairs":
        count = len(rows)
        found = report(scores, range(0, 2 * count, 2), range(1, 2 * count, 2))
    else:
        found = report(scores, *pairs_of([row.rating for row in rows], margin))
    return float(losses.mean()), found


def _judge(learning: _Learning, base: Base, run: AlignRun) -> None:
    """The held-out loss and pair accuracy; keeps the best state."""
    trainee = learning.trainee
    loss, found = judged(base, trainee, learning.data, learning.scale, learning.options.margin)
    best = loss < learning.best_loss
    if best:
        learning.best_loss, learning.best_report = loss, found
        trainee.keep_best()
    run.measured(learning.step, eval_loss=loss, pair_accuracy=found.accuracy, best=best)


def _store(
    job: AlignJob,
    base: Base,
    workspace: Workspace,
    template: Template,
    learning: _Learning,
    found: ScoreReport,
    run: AlignRun,
) -> StoredAdapter:
    adapter = learning.trainee.adapter
    return store_aligned(
        base,
        workspace,
        run,
        job.task,
        adapter,
        {
            "template": template.config(),
            "head": SCORE,
            "data": str(job.data),
            "data_sha256": learning.data.source.sha256,
            "metrics": {
                "trainable": adapter.trainable(),
                "eval_loss": learning.best_loss,
                "base_eval_loss": None,
                "pair_accuracy": found.accuracy,
                "pairs": found.pairs,
                "calibration_error": found.calibration_error,
                "score_mean": found.mean,
                "score_deviation": found.deviation,
                "rating_mean": learning.scale.mean,
                "rating_deviation": learning.scale.deviation,
                "steps": learning.step,
                "seconds": run.seconds,
            },
        },
        unlearned="" if learning.trainee.moved else no_gradient(),
    )
