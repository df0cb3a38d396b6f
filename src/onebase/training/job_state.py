"""The state of one job while it is trained: its adapter, rows, counters and best state so far."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from onebase.adapters.adapter import Adapter
from onebase.adapters.experts import unchanged_experts
from onebase.adapters.full import FULL, trainable_copy
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.engine.rows import TokenRow
from onebase.engine.trunk import lowest_changed_layer
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import JobStart
from onebase.runs.render_date import local_time
from onebase.training.batch_sampler import BatchSampler, FixedBatches
from onebase.training.job import Job
from onebase.training.learning_rate import learning_rate_factor
from onebase.training.task_data import TaskData, task_data
from onebase.training.trainable_adapter import TrainableAdapter

# A loss has exploded after so many steps in a row above what a uniform guess would cost (ln of the
# vocabulary) and above twice the job's first loss: noise and warm-up recover sooner.
EXPLODED_STEPS = 20
Trouble = Literal["not finite", "exploded"]
# The counters in a checkpoint, and the attributes that hold them.
_COUNTERS = {
    **{name: name for name in ("step", "epoch", "tokens", "seconds", "trouble", "best_loss")},
    **{name: name for name in ("best_step", "evaluations_since_best", "first_loss", "steps_above")},
    "judged_step": "evaluated_step",
    "stopped": "out_of_patience",
}


class JobState:
    """A job while it is trained, on the shared `base` or, if it trains every weight, on its own copy.

    `step` counts optimizer steps, `evaluated_step` is the last one with an evaluation, `tokens` counts
    the tokens trained on, and `trouble` says why the loss ended the job. `rendered_at` is the date that
    the rows are rendered with (None: now).
    """

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TaskData | None = None,
        *,
        rendered_at: datetime | None = None,
    ) -> None:
        self.job = job
        self.base = trainable_copy(base) if job.method == FULL else base
        self.options, method_settings = job.options()
        self.template = Template(
            base.tokenizer,
            kind=job.template,
            instruction=job.instruction,
            max_tokens=self.options.max_tokens,
            moment=rendered_at or local_time(),
        )
        self.data = task_data(job, self.template) if data is None else data.named(job.task)
        self.adapter: Adapter = build_adapter(
            self.base,
            job.method,
            method_settings,
            init_text=without_marks(job.init_text(self.data.dataset.labels)),
            seed=job.seed,
            leading=self.template.leading,
            placed=self.template.placed,
        )
        self._require_room()
        self.depth = self._depth()
        self.trainable = TrainableAdapter(
            self.base,
            self.adapter,
            job,
            max_norm=self.options.clip,
            weight_decay=self.options.weight_decay,
        )
        self.trainable.keep_best()
        self.step = 0
        self.epoch = 0
        self.tokens = 0
        self.seconds = 0.0
        self.evaluated_step = 0
        self.out_of_patience = False
        self.trouble: Trouble | None = None
        self.best_loss = math.inf
        self.best_step = 0
        self.evaluations_since_best = 0
        self.first_loss: float | None = None
        self.steps_above = 0
        rows_a_step = self.options.batch_size * self.options.accumulation
        self._batches: BatchSampler[TokenRow] | FixedBatches = BatchSampler(
            self.data.train, rows_a_step, job.seed
        )

    @property
    def task(self) -> str:
        """The task's name."""
        return self.job.task

    @property
    def start(self) -> JobStart:
        """The job as observers get it before the first step."""
        facts = [
            say(
                f"{len(self.data.train)} rows, {len(self.data.held_out)} held out, "
                f"{self.adapter.trainable():,} trainable parameters",
                f"{len(self.data.train)} 行训练，{len(self.data.held_out)} 行留出，"
                f"{self.adapter.trainable():,} 个可训练参数",
            )
        ]
        if self.data.truncated:
            facts.append(
                say(
                    f"{self.data.truncated} rows were longer than {self.options.max_tokens} tokens: "
                    "the end of their question was cut off.",
                    f"有 {self.data.truncated} 行超过 {self.options.max_tokens} 个词元：问题末尾被截断。",
                )
            )
        title = f"{self.task} ({self.job.method})"
        return JobStart(self.task, title, self.step, self.total_steps, facts=tuple(facts))

    @property
    def notes(self) -> list[str]:
        """What the user should know before the first step."""
        return [*self.data.notes, *unchanged_experts(self.base, [self.job.method])]

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self._batches.steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs, if nothing stops the job early."""
        return self.steps_an_epoch * self.options.epochs

    @property
    def diverged(self) -> bool:
        """Whether its loss ended it."""
        return self.trouble is not None

    @property
    def done(self) -> bool:
        """Whether no optimizer step is left."""
        return self.out_of_patience or self.diverged or self.step >= self.total_steps

    @property
    def without_gradient(self) -> bool:
        """Whether a whole epoch has passed without a gradient."""
        return self.step >= self.steps_an_epoch and not self.trainable.had_gradient

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step."""
        ends = self.done or self.step % self.steps_an_epoch == 0
        return ends and not self.diverged and self.step > self.evaluated_step

    @property
    def coming_tokens(self) -> int:
        """The tokens of the next optimizer step."""
        return sum(len(row.ids) for row in self._batches.coming())

    def next_batch(self) -> list[list[TokenRow]]:
        """The rows of the next optimizer step, as micro-batches of `batch_size` rows."""
        rows = next(self._batches)
        size = self.options.batch_size
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def is_finite(self, loss: float) -> bool:
        """Whether the loss of a step and its gradients are finite."""
        return math.isfinite(loss) and math.isfinite(self.trainable.gradient_norm())

    def record_loss(self, loss: float) -> Trouble | None:
        """Record the finite loss of a step, before its update; return the reason to stop, if there is one."""
        if self.first_loss is None:
            self.first_loss = loss
        above = loss > max(math.log(self.base.shape.vocabulary), 2 * self.first_loss)
        self.steps_above = self.steps_above + 1 if above else 0
        return "exploded" if self.steps_above >= EXPLODED_STEPS else None

    def update(self) -> tuple[float, float]:
        """One optimizer step; returns the gradient norm and the learning rate."""
        factor = learning_rate_factor(self.options, self.step, self.total_steps)
        norm, rate = self.trainable.update(factor)
        self.step += 1
        self.epoch = self.step // self.steps_an_epoch
        return norm, rate

    def record_evaluation(self, loss: float | None) -> bool:
        """Record a held-out loss; return whether it is the best so far. Without held-out rows (None) the
        last state is the best.
        """
        self.evaluated_step = self.step
        if loss is None or loss < self.best_loss:
            self.best_loss = self.best_loss if loss is None else loss
            self.best_step = self.step
            self.trainable.keep_best()
            self.evaluations_since_best = 0
            return True
        self.evaluations_since_best += 1
        patience = self.options.patience
        self.out_of_patience = bool(patience) and self.evaluations_since_best >= patience
        return False

    def use_batches(self, batches: Sequence[list[TokenRow]], held_out: list[TokenRow]) -> None:
        """Before the first step, for a dry run: train one epoch of these batches in their order, and
        evaluate on `held_out`.
        """
        rows = [row for batch in batches for row in batch]
        self.data = replace(self.data, train=rows, held_out=held_out)
        self.options = self.options.model_copy(update={"epochs": 1})
        self._batches = FixedBatches(batches)

    def state_dict(self) -> dict[str, Any]:
        """The job's part of a checkpoint, between two steps. Tensors that are saved already, or that a
        newly built job has too, are left out.
        """
        in_training = self.step > 0 and not (self.done and not self.evaluation_due)
        best_differs = self.best_step > 0 and not (in_training and self.best_step == self.step)
        return {
            "counts": {key: getattr(self, name) for key, name in _COUNTERS.items()},
            "order": self._batches.state_dict(),
            **self.trainable.state_dict(weights=in_training, best=best_differs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict` of a job like this one, freshly built."""
        counts = state["counts"]
        for key, name in _COUNTERS.items():
            setattr(self, name, counts[key])
        self._batches.load_state_dict(state["order"])
        first = self.trainable.best
        # Format 2 had `moved` among the counts.
        self.trainable.load_state_dict({"moved": counts.get("moved", True), **state})
        if state["best"] is None and self.best_step:
            self.trainable.keep_best()
        elif state["best"] is None:
            self.trainable.best = first

    def _require_room(self) -> None:
        """Raise DataError, naming the first one, for rows longer than the base's context."""
        context = self.base.context
        rows = [*self.data.train, *self.data.held_out]
        longest = max((len(row.ids) for row in rows), default=0)
        if context is None or self.adapter.before_text + longest <= context:
            return
        room = context - self.adapter.before_text
        too_long = sum(len(row.ids) > room for row in rows)
        first = next(
            (
                f"{example.file}:{example.line}"
                for example in self.data.dataset.examples
                if len(self.template.example(example).ids) > room
            ),
            str(self.job.held_out),
        )
        raise DataError(
            say(
                f"{first}: {too_long} rows have more than {room} tokens, up to {longest}: more than "
                f"{self.base.context_text} leaves room for.",
                f"{first}：有 {too_long} 行超过 {room} 个词元（最多 {longest} 个），超出 "
                f"{self.base.context_text}。",
            ),
            say(
                f"Set max_tokens={room} to cut longer rows, or shorten them."
                if room > 1
                else "Use fewer virtual tokens, or a base with a longer context.",
                f"请设置 max_tokens={room} 以截断更长的行，或缩短数据。"
                if room > 1
                else "请减少虚拟词元，或使用上下文更长的基座。",
            ),
        )

    def _depth(self) -> int:
        """The layer at which its passes may begin."""
        if self.options.trunk == "none" or self.adapter.full is not None:
            return 0
        contribution = self.adapter.contribution_in_evaluation()  # its dropout draws nothing yet
        return lowest_changed_layer(contribution, self.base.shape.layers)
