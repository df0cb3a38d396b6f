"""The training of a race's candidates: joint steps, evaluations at rungs, and what both cost."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.runs.recorder import RunRecorder
from onebase.search.budget import Limits, RacePlan, tokens_of
from onebase.search.candidate import Candidate, candidate_job
from onebase.search.history import History
from onebase.search.pruner import Rung
from onebase.search.room import Room
from onebase.search.space import Configuration
from onebase.search.ties import RowLosses
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.loop import evaluate_together, mean_losses, pack_tokens, step_together
from onebase.training.task_data import TaskData

# The clock and Ctrl-C are checked between groups of jobs whose rows fill so many packs.
_GROUP_PACKS = 2


class CandidateTraining:
    """Trains candidates on the rows `data` of one `job`, rendered at `rendered_at`, within `limits`.

    A candidate is trained exactly as it would be alone: its rows, their order and the schedule of its
    learning rate are those of the full length from the first step on.
    """

    def __init__(
        self,
        base: Base,
        job: Job,
        data: TaskData,
        rendered_at: datetime,
        plan: RacePlan,
        recorder: RunRecorder,
        history: History,
        limits: Limits,
    ) -> None:
        self.base = base
        self.job = job
        self.data = data
        self.plan = plan
        self.history = history
        self.room = Room(limits)
        self.row_losses = RowLosses()
        self.evaluated_tokens = 0
        self.repeated_tokens = 0  # of trainings that began again
        self._rendered_at = rendered_at
        self._tokens_an_epoch = tokens_of(data.train)
        self._recorder = recorder
        self._limits = limits
        self._trunk: Trunk | None = None

    @property
    def tokens(self) -> int:
        """The tokens trained on, over all configurations."""
        return self.repeated_tokens + sum(entry.tokens for entry in self.history.entries.values())

    def note(self, text: str, **facts: Any) -> None:
        """Tell the user, and record the same as plain values."""
        self._recorder.noted(text, task=self.job.task, **facts)

    def check(self) -> None:
        """Raises KeyboardInterrupt or OutOfBudget."""
        self._limits.check(self.tokens)

    def base_loss(self) -> float:
        """The bare base's loss over all held-out rows."""
        rows = [row.bare() for row in self.data.held_out]
        (loss,) = mean_losses(self.base, rows, {}, self._limits.check).values()
        self._recorder.base_evaluated({self.job.task: loss})
        self.evaluated_tokens += tokens_of(rows)
        return loss

    def build(self, configuration: Configuration) -> JobState:
        """A candidate's state before its first step."""
        self.check()
        job = candidate_job(self.job, configuration, self.plan.epochs)
        state = JobState(job, self.base, self.data, rendered_at=self._rendered_at)
        self.use_sample(state)
        self._share_trunk(state)
        return state

    def use_sample(self, state: JobState) -> None:
        """Evaluate it on as many held-out rows as planned, spread evenly over all of them."""
        rows, count = self.data.held_out, self.plan.evaluation_rows
        chosen = [rows[index * len(rows) // count] for index in range(count)]
        held_out = [replace(row, adapter=state.task) for row in chosen]
        state.data = replace(state.data, held_out=held_out)

    def use_all_rows(self, state: JobState) -> None:
        """Evaluate it on all held-out rows from here on."""
        state.data = self.data.named(state.task)

    def step(self, candidates: Sequence[Candidate]) -> None:
        """One optimizer step of each."""
        for base, group in self._groups([candidate.state for candidate in candidates]):
            before = self.tokens
            self._limits.check(before, sum(state.coming_tokens for state in group))
            began = time.monotonic()
            step_together(base, group, self._recorder, trunk=self._trunk)
            self.room.pace.trained(self.tokens - before, time.monotonic() - began)

    def train_to(self, rung: Rung, candidates: Sequence[Candidate]) -> None:
        """Train candidates up to a rung."""
        while True:
            self.check()
            behind = [
                candidate
                for candidate in candidates
                if not candidate.state.diverged
                and candidate.state.step < rung.step(candidate.state.total_steps)
            ]
            if not behind:
                return
            self.step(behind)

    def train_to_the_end(self, candidates: Sequence[Candidate]) -> None:
        """Train candidates that have passed the last rung, with an evaluation after every epoch."""
        self.history.rung = None
        while True:
            due = [candidate.state for candidate in candidates if candidate.state.evaluation_due]
            if due:
                self.evaluate(due, self.check)
            unfinished = [candidate for candidate in candidates if not candidate.state.done]
            if not unfinished:
                return
            self.check()
            self.step(unfinished)

    def evaluate_rung(self, number: int, candidates: Sequence[Candidate]) -> None:
        """The losses at a rung, over one sample of the held-out rows; at the last rung over all of them.
        From there on only losses over all rows compete.
        """
        self.history.rung = number
        sound = [candidate for candidate in candidates if not candidate.state.diverged]
        due = [one.state for one in sound if one.state.step > one.state.evaluated_step]
        self.evaluate(due, self.check)
        for candidate in sound:  # a short training may have two rungs at one step
            last = candidate.entry.evaluations[-1:]
            if last and last[0].rung != number:
                candidate.entry.evaluations.append(replace(last[0], rung=number))
        if number == len(self.plan.rungs) and self.plan.evaluation_rows < len(self.data.held_out):
            for candidate in sound:
                if not candidate.state.diverged:
                    self._evaluate_on_all_rows(candidate)

    def evaluate(self, states: Sequence[JobState], check: Callable[[], None] | None) -> None:
        """The held-out losses of candidates."""
        for base in dict.fromkeys(state.base for state in states):
            group = [state for state in states if state.base is base]
            on_row = self.row_losses.recorder(group)
            began = time.monotonic()
            evaluate_together(base, group, self._recorder, check, trunk=self._trunk, on_row=on_row)
            tokens = sum(tokens_of(state.data.held_out) for state in group)
            self.evaluated_tokens += tokens
            self.room.pace.evaluated(tokens, time.monotonic() - began)
        if self.history.rung is not None:
            for state in states:  # patience counts epochs, not rungs
                state.out_of_patience, state.evaluations_since_best = False, 0

    def _groups(self, states: Sequence[JobState]) -> Iterator[tuple[Base, list[JobState]]]:
        """Groups of jobs on one base whose rows fill a few packs."""
        for base in dict.fromkeys(state.base for state in states):
            group: list[JobState] = []
            tokens = 0.0
            for state in (state for state in states if state.base is base):
                group.append(state)
                tokens += self._tokens_an_epoch / state.steps_an_epoch
                if tokens >= _GROUP_PACKS * pack_tokens(base.device):
                    yield base, group
                    group, tokens = [], 0.0
            if group:
                yield base, group

    def _evaluate_on_all_rows(self, candidate: Candidate) -> None:
        """Evaluate a candidate's best state, chosen by the sample, on all rows; the new loss replaces the
        one at this rung. Abandoned, everything stays as the sample left it.
        """
        state, entry = candidate.state, candidate.entry
        best_step = state.best_step
        present = {name: value.clone() for name, value in state.adapter.state_dict().items()}
        before, by_sample = (state.data, state.best_loss), list(entry.evaluations)
        self.use_all_rows(state)
        state.best_loss = math.inf
        state.trainable.load_best()
        try:
            self.evaluate([state], self.check)
        finally:
            state.adapter.load_state_dict(present)
            if math.isinf(state.best_loss):
                state.data, state.best_loss = before
        state.best_step = best_step
        # The best state may be that of an earlier rung.
        tokens = next(item.tokens for item in by_sample if item.step == best_step)
        evaluation = replace(entry.evaluations[-1], step=best_step, tokens=tokens)
        entry.evaluations = [*by_sample[:-1], evaluation]

    def _share_trunk(self, state: JobState) -> None:
        """Compute the layers below the adapter once, for all that begin at the same layer."""
        if not state.depth:
            return
        if self._trunk is None:
            fp16 = state.options.trunk == "fp16"
            self._trunk = Trunk(self.base, dtype="fp16" if fp16 else "fp32")
        if self._trunk.usable(state.depth):
            rows = [*self.data.train, *self.data.held_out]
            self._trunk.prepare(state.depth, [row.ids for row in rows], self._limits.check)
