"""One job while it learns: its adapter, its rows, its optimizer, its best state so far."""

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.experts import unchanged_experts
from onebase.adapters.full import FULL, trainable_copy
from onebase.adapters.methods import METHODS, build_adapter, parts_of, settings_by_method
from onebase.data.check import left_out, no_end, rewritten
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.fields import unread
from onebase.data.formats import load_dataset, require_good
from onebase.data.rendering import rendered_examples, without_room
from onebase.data.split import split
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.engine.rows import TokenRow
from onebase.engine.trunk import depth
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.render_date import present
from onebase.training.batch_sampler import GivenOrder, Order
from onebase.training.job import Job, TrainOptions

# A loss counts as exploded after so many steps in a row above what a uniform guess would cost (ln
# of the vocabulary) and above twice the job's first: noise and warm-up come back sooner.
EXPLODED_STEPS = 20
Trouble = Literal["not finite", "exploded"]
# What a checkpoint keeps of a job as plain values, beside tensors, order and dropout.
_COUNTS = (
    *("step", "epoch", "tokens", "seconds", "judged_step", "stopped", "trouble"),
    *("best_loss", "best_step", "evaluations_since_best", "first_loss", "steps_above", "moved"),
)


@dataclass(frozen=True)
class TaskData:
    """A job's rows as tokens: what it learns from, and what it is judged by. `bad` are the rows that are
    left out, `notes` what the user should know before the first step.
    """

    train: list[TokenRow]
    held_out: list[TokenRow]
    dataset: Dataset
    held_out_sha256: str | None
    bad: tuple[BadRow, ...]
    truncated: int
    notes: tuple[str, ...]

    def digest(self) -> str:
        """A hash of all rows as the model sees them, SHA-256."""
        digest = hashlib.sha256()
        for rows in (self.train, self.held_out):
            digest.update(str(len(rows)).encode())
            for row in rows:
                digest.update(array("q", (len(row.ids), *row.ids)).tobytes() + bytes(row.loss_mask))
        return digest.hexdigest()

    def named(self, task: str) -> "TaskData":
        """The same rows for another job's adapter; what was bad or cut is told once, not here."""
        train, held_out = (
            [replace(row, adapter=task) for row in rows] for rows in (self.train, self.held_out)
        )
        return replace(self, train=train, held_out=held_out, bad=(), truncated=0, notes=())


def task_data(job: Job, template: Template) -> TaskData:
    """Read, render, check and split a job's data. Raises DataError or UsageError."""
    options, _ = job.options()
    columns = dict(job.columns) or None
    dataset = load_dataset(job.data, columns=columns, encoding=job.encoding)
    dataset, tokens = rendered_examples(dataset, template)
    require_good(dataset, skip_bad=job.skip_bad)
    found = {id(example): item for example, item in zip(dataset.examples, tokens, strict=True)}
    bad = dataset.bad
    held: Dataset | None = None
    held_out_sha256: str | None = None
    passed_over = unread(dataset.fields)
    train = dataset
    if job.held_out is not None:
        held = load_dataset(job.held_out, columns=columns, encoding=job.encoding)
        held, tokens = rendered_examples(held, template)
        require_good(held, skip_bad=job.skip_bad)
        found |= {id(example): item for example, item in zip(held.examples, tokens, strict=True)}
        bad += held.bad
        passed_over += unread(held.fields, held.path)
        held_out_sha256 = held.sha256
    elif options.held_out:
        train, held = split(dataset, options.held_out, job.seed)

    empty: list[Example] = []

    def rows(examples: Sequence[Example]) -> list[TokenRow]:
        made = []
        for example in examples:
            item = found[id(example)]
            row = TokenRow(job.task, item.ids, item.loss_mask)
            if row.labels:
                made.append(row)
            else:
                empty.append(example)
        return made

    learned, judged = rows(train.examples), rows(held.examples) if held else []
    if not learned:
        raise DataError(
            say(
                f"No row of {job.data} leaves anything to learn within {options.max_tokens} tokens.",
                f"{job.data} 中没有一行能在 {options.max_tokens} 个词元内留下可学习的内容。",
            ),
            say("Raise max_tokens, or shorten the rows.", "请增大 max_tokens，或缩短数据。"),
        )
    rendered = [found[id(example)] for example in train.examples]
    bad += tuple(without_room(example, template) for example in empty)
    return TaskData(
        train=learned,
        held_out=judged,
        dataset=dataset,
        held_out_sha256=held_out_sha256,
        bad=bad,
        truncated=sum(item.truncated for item in rendered),
        notes=(
            *left_out(bad),
            *passed_over,
            *no_end(template),
            *rewritten(train.examples, rendered),
        ),
    )


class Learner:
    """A job's state. `base` is what it learns on: the shared one, or a copy of its own where it
    changes every weight. `step` counts optimizer steps, `judged_step` is the last one with an
    evaluation, `moment` is when its rows are rendered (None: now), `tokens` counts those learned from; `trouble` says why its loss ended it; `moved`
    whether any step had a gradient.
    """

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TaskData | None = None,
        *,
        moment: datetime | None = None,
    ) -> None:
        self.job = job
        self.base = trainable_copy(base) if job.method == FULL else base
        self.options: TrainOptions
        self.options, own = job.options()
        self.template = Template(
            base.tokenizer,
            kind=job.template,
            instruction=job.instruction,
            max_tokens=self.options.max_tokens,
            moment=moment or present(),
        )
        self.data = task_data(job, self.template) if data is None else data.named(job.task)
        self.adapter: Adapter = build_adapter(
            self.base,
            job.method,
            own,
            init_text=without_marks(job.init_text(self.data.dataset.labels)),
            seed=job.seed,
            leading=self.template.leading,
            placed=self.template.placed,
        )
        self._require_room()
        self.depth = self._depth()
        groups = parameter_groups(self.adapter, job)
        self.peaks = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.options.weight_decay)
        self.step = 0
        self.epoch = 0
        self.tokens = 0
        self.seconds = 0.0
        self.judged_step = 0
        self.stopped = False
        self.trouble: Trouble | None = None
        self.best_loss = math.inf
        self.best_step = 0
        self.best: dict[str, Tensor] = self.adapter.parts()
        self.evaluations_since_best = 0
        self.first_loss: float | None = None
        self.steps_above = 0
        self.moved = False
        a_step = self.options.batch_size * self.options.accumulation
        self._batches: Order[TokenRow] | GivenOrder = Order(self.data.train, a_step, job.seed)

    def _require_room(self) -> None:
        """Raise DataError, naming the first, for rows beyond the base's context."""
        context = self.base.context
        rows = [*self.data.train, *self.data.held_out]
        longest = max((len(row.ids) for row in rows), default=0)
        if context is None or self.adapter.before_text + longest <= context:
            return
        room = context - self.adapter.before_text
        long = sum(len(row.ids) > room for row in rows)
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
                f"{first}: {long} rows have more than {room} tokens, up to {longest}: more than "
                f"{self.base.context_text} leaves room for.",
                f"{first}：有 {long} 行超过 {room} 个词元（最多 {longest} 个），超出 "
                f"{self.base.context_text}。",
            ),
            say(
                f"Set max_tokens={room}, so that longer rows are cut, or shorten them."
                if room > 1
                else "Use fewer virtual tokens, or a base with a longer context.",
                f"请设置 max_tokens={room} 以截断更长的行，或缩短数据。"
                if room > 1
                else "请减少虚拟词元，或使用上下文更长的基座。",
            ),
        )

    def _depth(self) -> int:
        """The layer at which its passes may begin; 0 where they can't, or shall not."""
        if self.options.trunk == "none" or self.adapter.full is not None:
            return 0
        self.adapter.eval()  # its dropout draws nothing yet
        with torch.no_grad():
            return depth(self.adapter.contribution(), self.base.shape.layers)

    def shorten(self, batches: Sequence[list[TokenRow]], held_out: list[TokenRow]) -> None:
        """Make a trial of the job, before its first step: one epoch of these batches in their
        order, judged by `held_out`.
        """
        rows = [row for batch in batches for row in batch]
        self.data = replace(self.data, train=rows, held_out=held_out)
        self.options = self.options.model_copy(update={"epochs": 1})
        self._batches = GivenOrder(batches)

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
        """Optimizer steps when nothing stops the job early."""
        return self.steps_an_epoch * self.options.epochs

    @property
    def diverged(self) -> bool:
        """Whether its loss ended it."""
        return self.trouble is not None

    @property
    def done(self) -> bool:
        """Whether the job has learned all it will."""
        return self.stopped or self.diverged or self.step >= self.total_steps

    @property
    def still(self) -> bool:
        """Whether a whole epoch has passed without a gradient."""
        return self.step >= self.steps_an_epoch and not self.moved

    @property
    def due(self) -> bool:
        """Whether an evaluation is to come before the next step."""
        ends = self.done or self.step % self.steps_an_epoch == 0
        return ends and not self.diverged and self.step > self.judged_step

    def next_batch(self) -> list[list[TokenRow]]:
        """The rows of the next optimizer step, as micro-batches of `batch_size` rows."""
        rows = next(self._batches)
        size = self.options.batch_size
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def trouble_with(self, loss: float) -> Trouble | None:
        """Take note of a step's loss, its gradients at hand; why it ends the job, if it does."""
        gradients = [p.grad for p in self.adapter.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        if self.first_loss is None:
            self.first_loss = loss
        above = loss > max(math.log(self.base.shape.vocabulary), 2 * self.first_loss)
        self.steps_above = self.steps_above + 1 if above else 0
        return "exploded" if self.steps_above >= EXPLODED_STEPS else None

    def update(self) -> tuple[float, float]:
        """One optimizer step from the gradients at hand; returns the gradient norm and the
        learning rate (the first method's).
        """
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.options.clip)
        factor = schedule(self.options, self.step, self.total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.moved = self.moved or float(norm) > 0
        self.step += 1
        self.epoch = self.step // self.steps_an_epoch
        return float(norm), self.peaks[0] * factor

    def judge(self, loss: float | None) -> bool:
        """Take note of a held-out loss; whether it is the best so far. None: nothing is held out,
        and the last state is the best.
        """
        self.judged_step = self.step
        if loss is None or loss < self.best_loss:
            self.best_loss = self.best_loss if loss is None else loss
            self.best_step, self.best = self.step, self.adapter.parts()
            self.evaluations_since_best = 0
            return True
        self.evaluations_since_best += 1
        patience = self.options.patience
        self.stopped = bool(patience) and self.evaluations_since_best >= patience
        return False

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds of the job between two steps, prompt encoder and optimizer
        included. Nothing is held twice, nor what building the job anew makes again.
        """
        lora = self.adapter.lora
        learning = self.step > 0 and not (self.done and not self.due)
        apart = self.best_step > 0 and not (learning and self.best_step == self.step)
        return {
            "counts": {name: getattr(self, name) for name in _COUNTS},
            "order": self._batches.state(),
            "drawn": None if lora is None else lora.drawn,
            "adapter": self.adapter.state_dict() if learning else None,
            "optimizer": self.optimizer.state_dict() if learning else None,
            "best": self.best if apart else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a job like this one, freshly built."""
        self.moved = True  # unless the checkpoint says otherwise, which those of format 1 don't
        for name, value in state["counts"].items():
            setattr(self, name, value)
        self._batches.load(state["order"])
        if self.adapter.lora is not None:
            self.adapter.lora.drawn = state["drawn"]
        if state["adapter"] is not None:
            self.adapter.load_state_dict(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
        if state["best"] is not None:
            self.best = {name: part.to(self.base.device) for name, part in state["best"].items()}
        elif self.best_step:
            self.best = self.adapter.parts()


def parameter_groups(adapter: Adapter, job: Job) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: each method's learning rate, and LoRA+'s for `b`."""
    own, _ = settings_by_method(job.method, job.set)
    rates, beta2s = job.rates(), job.beta2s()
    groups = []
    for name in parts_of(job.method):
        part = getattr(adapter, METHODS[name].part)
        common = {"lr": rates[name], "betas": (0.9, beta2s[name])}
        ratio = float(own[name].get("loraplus_lr_ratio", 1.0))
        faster = list(part.b) if ratio != 1 else []
        chosen = {id(parameter) for parameter in faster}
        rest = [parameter for parameter in part.parameters() if id(parameter) not in chosen]
        groups.append({"params": rest, **common})
        if faster:
            groups.append({"params": faster, **common, "lr": rates[name] * ratio})
    return groups


def schedule(options: TrainOptions, step: int, total: int) -> float:
    """The factor on the peak learning rate at a step counted from 0."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    if options.schedule == "constant":
        return 1.0
    share = (step - options.warmup) / max(1, total - options.warmup)
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return max(0.0, 1 - share)
