"""Shared by DPO, KTO and reward models: setup, training loop and result."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from onebase.adapters.option import StrictOptions, option
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.job import AlignJob
from onebase.align.preference_data import PreferenceData, PreferenceRow, load_rows, preference_data
from onebase.align.run_config import align_config, earlier_run, with_rows
from onebase.align.start import Start, start_from
from onebase.align.unlearned import no_gradient, nothing_better
from onebase.data.preferences import Kind
from onebase.model.base import Base
from onebase.runs.observer import JobStart, Observer
from onebase.runs.render_date import local_time, render_date_of
from onebase.runs.run import Run
from onebase.runs.session import RunSession, run_session
from onebase.training.batch_sampler import BatchSampler
from onebase.training.learning_rate import learning_rate_factor
from onebase.training.options import CLIP, WARMUP, WEIGHT_DECAY, TrainOptions
from onebase.training.stored_result import not_promoted_note, store_result
from onebase.training.trainable_adapter import TrainableAdapter

# Preferences move a policy that can answer already: a tenth of the rate that it was trained with.
POLICY_RATE = 0.1
# An option of DPO and KTO.
BETA = option(
    0.1,
    "Strength of the KL penalty: larger values keep the policy closer to the reference.",
    "KL 惩罚强度：越大，策略越接近参考模型。",
    gt=0,
)


class PreferenceOptions(StrictOptions):
    """The options that DPO, KTO and reward models have in common."""

    epochs: int = option(1, "Passes over the training rows.", "训练数据的遍数。", ge=1, le=1000)
    batch_size: int = option(8, "Rows a step.", "每步的行数。", ge=1)
    learning_rate: float | None = option(
        None,
        "Peak learning rate; by default a tenth of the method's own.",
        "学习率峰值；默认为方法自身学习率的十分之一。",
        gt=0,
    )
    warmup: int = WARMUP
    clip: float = CLIP
    weight_decay: float = WEIGHT_DECAY
    held_out: float = option(
        0.1,
        "Share of the questions held out for evaluation, where no held-out file is given.",
        "未指定留出文件时，留出用于评估的提问所占比例。",
        gt=0,
        lt=1,
    )
    max_tokens: int = option(
        512,
        "Tokens of the longest row; longer rows are cut.",
        "每行的最大词元数，超出部分被截断。",
        ge=8,
    )


Options = TypeVar("Options", bound=PreferenceOptions)


@dataclass(frozen=True)
class PreferenceSetup(Generic[Options]):
    """Everything that a run needs before its first step; `earlier` is the interrupted run that continues."""

    job: AlignJob
    start: Start
    options: Options
    data: PreferenceData
    config: dict[str, Any]
    earlier: Run | None

    def session(
        self, base: Base, workspace: Workspace, observer: Observer | None
    ) -> AbstractContextManager[RunSession]:
        """The run: a new one, or the earlier one."""
        seed, earlier = self.job.seed, self.earlier
        return run_session(self.config, base, workspace, seed, earlier=earlier, observer=observer)


def set_up(
    algorithm: str,
    job: AlignJob,
    options_type: type[Options],
    kinds: Sequence[Kind],
    base: Base,
    workspace: Workspace,
    *,
    restart: bool,
    run_id: str | None,
    scored: bool = False,
) -> PreferenceSetup[Options]:
    """Read the job's data, and build or load the adapter that is trained; `scored`: with a scalar head,
    and answers may stand alone. Raises UsageError or DataError.
    """
    source = load_rows(job, kinds)
    options = job.options(job.method or "lora", options_type)  # the same for every method
    bare = scored and source.bare
    start = start_from(job, base, workspace, max_tokens=options.max_tokens, bare=bare)
    job.check_settings(start.adapter.method, options_type)
    if scored:
        start.adapter.head = ScalarHead(base.shape.hidden).to(base.device)
    job = start.fixed_in(job)
    config = align_config(algorithm, job, base, [options], [source.sha256])
    earlier = earlier_run(config, workspace, restart=restart, run_id=run_id)
    start = start.at(local_time() if earlier is None else render_date_of(earlier.config))
    data = preference_data(job, base, source, start, options.held_out, alone=scored)
    config = with_rows(config, earlier, start.template, data.digest())
    return PreferenceSetup(job, start, options, data, config, earlier)


class PreferenceTraining(Generic[Options]):
    """The state of a training on preferences. `first` and `best` are the records of evaluations.

    `reference_logprobs`, of DPO, are those of the training rows' answers once they are known, [rows, 2].
    """

    def __init__(
        self,
        base: Base,
        setup: PreferenceSetup[Options],
        *,
        rate: float = POLICY_RATE,
        head_rate: float = 0.0,
    ) -> None:
        options = setup.options
        self.base = base
        self.setup = setup
        self.options = options
        self.data = setup.data
        self.trainable = TrainableAdapter(
            base,
            setup.start.adapter,
            setup.job.training_job(setup.start.adapter.method, options.learning_rate),
            max_norm=options.clip,
            weight_decay=options.weight_decay,
            head_rate=head_rate,
        )
        self.step = 0
        self.first: dict[str, float] = {}
        self.best: dict[str, float] = {"eval_loss": math.inf}
        self.reference_logprobs: torch.Tensor | None = None
        self._rate = rate if options.learning_rate is None else 1.0
        indices = list(range(len(setup.data.train)))
        self._batches = BatchSampler(indices, options.batch_size, setup.job.seed)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self._batches.steps * self.options.epochs

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The task's steps: those done, and all."""
        return {self.setup.job.task: (self.step, self.total_steps)}

    def train(
        self,
        run: RunSession,
        title: str,
        step: Callable[[list[int]], dict[str, float]],
        evaluate: Callable[[list[PreferenceRow]], dict[str, float]],
        *,
        notes: Sequence[str] = (),
        evaluate_first: bool = True,
    ) -> None:
        """The loop of every training on preferences. `step` accumulates the gradients of training rows,
        by index; `evaluate` measures held-out rows.
        """
        task, data = self.setup.job.task, self.data
        run.restore(self, [self.setup.start.template])
        run.tell(task, data.bad, [*data.notes, *notes])
        run.recorder.started([JobStart(task, f"{task} ({title})", self.step, self.total_steps)])
        if evaluate_first and not self.first:
            self._record_evaluation(run, evaluate(data.held_out))
        while self.step < self.total_steps:
            run.between_steps()
            record = step(next(self._batches))
            self._update()
            run.recorder.step(task, self.step, record)
            if self.step % self._batches.steps == 0:
                self._record_evaluation(run, evaluate(data.held_out))
                run.between_steps(evaluated=True)

    def store(
        self,
        run: RunSession,
        workspace: Workspace,
        record: Mapping[str, Any],
        *,
        unlearned: str = "",
    ) -> StoredAdapter:
        """Store the best state as the task's next version; `record` joins what every version records, and
        `unlearned` says why nothing was learned, if so.
        """
        job, adapter = self.setup.job, self.trainable.adapter
        metrics = {
            "trainable": adapter.trainable(),
            "eval_loss": self.best["eval_loss"],
            "base_eval_loss": self.first.get("eval_loss"),
            **record["metrics"],
            "steps": self.step,
            "seconds": run.seconds,
        }
        about = {
            "template": self.setup.start.template.config(),
            "data": str(job.data),
            "data_sha256": self.data.source.sha256,
            **record,
            "metrics": metrics,
        }
        if not self.trainable.had_gradient:
            unlearned = no_gradient()
        return store_aligned(run, workspace, self.base, job.task, self.trainable, about, unlearned)

    def store_policy(
        self,
        run: RunSession,
        workspace: Workspace,
        algorithm: str,
        metrics: Sequence[str],
        *,
        unlearned: str = "",
    ) -> StoredAdapter:
        """Store a policy, with these `metrics` of its best evaluation."""
        if self.best.get("step") == 0 and self.trainable.had_gradient and not unlearned:
            run.note(nothing_better())
        stored = self.setup.start.stored
        record = {
            "aligned": algorithm,
            "reference": stored.name if stored else None,
            "metrics": {name: self.best[name] for name in metrics},
        }
        version = self.store(run, workspace, record, unlearned=unlearned)
        run.summary = {"adapters": [version.name], **self.best}
        return version

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "first": self.first,
            "best": self.best,
            "known": self.reference_logprobs,
            "order": self._batches.state_dict(),
            "trainee": self.trainable.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.step = state["step"]
        # Formats 1 and 2 had only the best loss of a reward model.
        self.best = state["best"] if "best" in state else {"eval_loss": state["best_loss"]}
        self.first = state.get("first", {})
        self.reference_logprobs = state.get("known")
        self._batches.load_state_dict(state["order"])
        self.trainable.load_state_dict(state["trainee"])

    def _update(self) -> None:
        schedule = TrainOptions(warmup=self.options.warmup)
        factor = learning_rate_factor(schedule, self.step, self.total_steps)
        self.trainable.update(self._rate * factor)
        self.step += 1

    def _record_evaluation(self, run: RunSession, record: dict[str, float]) -> None:
        self.first = self.first or record
        best = record["eval_loss"] < self.best["eval_loss"]
        if best:
            self.best = {**record, "step": self.step}
            self.trainable.keep_best()
        run.recorder.evaluated(self.setup.job.task, self.step, {**record, "best": best})


def store_aligned(
    run: RunSession,
    workspace: Workspace,
    base: Base,
    task: str,
    trained: TrainableAdapter,
    record: Mapping[str, Any],
    unlearned: str,
) -> StoredAdapter:
    """Store the adapter's best state as the task's next version. Where nothing was learned, for the reason
    `unlearned`, the user is told and the task's current version stays.
    """
    with run.storing(workspace):
        trained.load_best()  # not before: the end of the training is saved first
        stored = store_result(
            workspace, base, run.run, task, trained.adapter, record, learned=not unlearned
        )
    if unlearned:
        run.note(f"{unlearned} {not_promoted_note(stored, workspace)}")
    return stored
