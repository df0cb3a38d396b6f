"""One job while it learns: its adapter, its rows, its optimizer, its best state so far."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.full import FULL, trainable_copy
from onebase.adapters.methods import METHODS, build_adapter, own_settings, parts_of
from onebase.data.example import BadRow, Dataset
from onebase.data.formats import load_dataset, require_good
from onebase.data.places import without_marks
from onebase.data.split import split
from onebase.data.template import Template
from onebase.engine.rows import TokenRow
from onebase.errors import DataError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job, TrainOptions


@dataclass(frozen=True)
class TaskData:
    """A job's rows as tokens: what it learns from, and what it is judged by."""

    train: list[TokenRow]
    held_out: list[TokenRow]
    dataset: Dataset
    bad: tuple[BadRow, ...]
    truncated: int


def task_data(job: Job, template: Template) -> TaskData:
    """Read, check, split and render a job's data. Raises DataError or UsageError."""
    options, _ = job.options()
    dataset = load_dataset(job.data, columns=dict(job.columns) or None)
    require_good(dataset, skip_bad=job.skip_bad)
    if job.held_out is not None:
        train, held = dataset, load_dataset(job.held_out, columns=dict(job.columns) or None)
        require_good(held, skip_bad=job.skip_bad)
    elif options.held_out:
        train, held = split(dataset, options.held_out, job.seed)
    else:
        train, held = dataset, None
    rendered = [template.example(example) for example in train.examples]
    judged = [template.example(example) for example in held.examples] if held else []
    rows = [TokenRow(job.task, item.ids, item.learned) for item in rendered]
    if not any(row.labels for row in rows):
        raise DataError(
            say(
                f"No row of {job.data} leaves anything to learn within {options.max_tokens} tokens.",
                f"{job.data} 中没有一行能在 {options.max_tokens} 个词元内留下可学习的内容。",
            ),
            say("Raise max_tokens, or shorten the rows.", "请增大 max_tokens，或缩短数据。"),
        )
    return TaskData(
        train=[row for row in rows if row.labels],
        held_out=[
            row
            for row in (TokenRow(job.task, item.ids, item.learned) for item in judged)
            if row.labels
        ],
        dataset=dataset,
        bad=dataset.bad + (held.bad if held and job.held_out is not None else ()),
        truncated=sum(item.truncated for item in rendered),
    )


class Learner:
    """A job's state. `base` is what it learns on: the shared one, or a copy of its own where it
    changes every weight. `step` counts optimizer steps, `tokens` the tokens learned from; `diverged`
    says that its loss was no longer finite.
    """

    def __init__(self, job: Job, base: Base) -> None:
        self.job = job
        self.base = trainable_copy(base) if job.method == FULL else base
        self.options: TrainOptions
        self.options, own = job.options()
        self.template = Template(
            base.tokenizer,
            kind=job.template,
            instruction=job.instruction,
            max_tokens=self.options.max_tokens,
        )
        self.data = task_data(job, self.template)
        self.adapter: Adapter = build_adapter(
            self.base,
            job.method,
            own,
            init_text=without_marks(job.init_text(self.data.dataset.labels)),
            seed=job.seed,
            leading=self.template.leading,
            placed=self.template.placed,
        )
        groups = parameter_groups(self.adapter, job)
        self.peaks = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.options.weight_decay)
        self.step = 0
        self.epoch = 0
        self.tokens = 0
        self.seconds = 0.0
        self.stopped = False
        self.diverged = False
        self.best_loss = math.inf
        self.best_step = 0
        self.best: dict[str, Tensor] = self.adapter.parts()
        self.evaluations_since_best = 0
        self._order = random.Random(job.seed)
        self._batches = self._shuffled()

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps an epoch."""
        rows = self.options.batch_size * self.options.accumulation
        return math.ceil(len(self.data.train) / rows)

    @property
    def total_steps(self) -> int:
        """Optimizer steps when nothing stops the job early."""
        return self.steps_an_epoch * self.options.epochs

    @property
    def done(self) -> bool:
        """Whether the job has learned all it will."""
        return self.stopped or self.diverged or self.step >= self.total_steps

    def next_batch(self) -> list[list[TokenRow]]:
        """The rows of the next optimizer step, as micro-batches of `batch_size` rows."""
        rows = next(self._batches)
        size = self.options.batch_size
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def _shuffled(self) -> Iterator[list[TokenRow]]:
        size = self.options.batch_size * self.options.accumulation
        while True:
            rows = list(self.data.train)
            self._order.shuffle(rows)
            for at in range(0, len(rows), size):
                yield rows[at : at + size]

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
        self.step += 1
        self.epoch = self.step // self.steps_an_epoch
        return float(norm), self.peaks[0] * factor

    def judge(self, loss: float) -> bool:
        """Take note of a held-out loss; whether it is the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.best = loss, self.step, self.adapter.parts()
            self.evaluations_since_best = 0
            return True
        self.evaluations_since_best += 1
        patience = self.options.patience
        self.stopped = bool(patience) and self.evaluations_since_best >= patience
        return False

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds, prompt encoder and optimizer included."""
        return {
            "adapter": self.adapter.parts(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best_loss": self.best_loss,
        }


def parameter_groups(adapter: Adapter, job: Job) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: each method's learning rate, and LoRA+'s for `b`."""
    own, _ = own_settings(job.method, job.set)
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
