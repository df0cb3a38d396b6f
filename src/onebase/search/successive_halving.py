"""Successive halving: all candidates train to a rung together, are evaluated, and the worst stop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import optuna
from optuna.trial import Trial, TrialState

from onebase.engine.trunk import Trunk
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.recorder import RunRecorder
from onebase.search.budget import Limits, RacePlan, tokens_of
from onebase.search.history import History
from onebase.search.leaderboard import Entry, Stop
from onebase.search.pruner import HalvingPruner, Rung
from onebase.search.space import Configuration
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.loop import evaluate_together, mean_losses, pack_tokens, step_together
from onebase.training.task_data import TaskData

# The clock and Ctrl-C are checked between groups of jobs whose rows fill so many packs.
_GROUP_PACKS = 2
_RECENT_STEPS = 5


class NobodyLeft(Exception):
    """The loss of every remaining configuration has exploded or is no longer finite."""


@dataclass
class Candidate:
    """A configuration while it is in the race."""

    entry: Entry
    trial: Trial
    state: JobState


class SuccessiveHalving:
    """A race of configurations of one `job`, each with its own settings on top of the job's.

    A configuration that survives has been trained exactly as it would have been alone: its rows, their
    order and the schedule of its learning rate are those of the full length from the first step on.
    """

    def __init__(
        self,
        base: Base,
        job: Job,
        data: TaskData,
        plan: RacePlan,
        recorder: RunRecorder,
        history: History,
        limits: Limits,
    ) -> None:
        self._base = base
        self._job = job
        self._data = data
        self._tokens_an_epoch = tokens_of(data.train)
        self._recorder = recorder
        self._history = history
        self._limits = limits
        self._last_rung = 0  # the last rung that was reached
        self._trunk: Trunk | None = None
        self.plan = plan
        self.base_loss: float | None = None
        self.evaluated_tokens = 0
        self.remaining: list[Candidate] = []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="minimize", pruner=HalvingPruner(plan.rungs), study_name=job.task
        )

    @property
    def task(self) -> str:
        """The task's name."""
        return self._job.task

    @property
    def entries(self) -> list[Entry]:
        """Every configuration that entered the race, by number."""
        return list(self._history.entries.values())

    @property
    def tokens(self) -> int:
        """The tokens trained on, over all configurations."""
        return sum(entry.tokens for entry in self.entries)

    def evaluate_base(self) -> None:
        """The bare base's loss over all held-out rows, for comparison."""
        rows = [row.bare() for row in self._data.held_out]
        (self.base_loss,) = mean_losses(self._base, rows, {}, self._limits.check).values()
        self._recorder.base_evaluated({self._job.task: self.base_loss})
        self.evaluated_tokens += tokens_of(rows)

    def enter(self, configurations: Sequence[Configuration]) -> None:
        """Build the configurations that are not in the race yet."""
        for configuration in configurations[len(self.entries) :]:
            self._limits.check()
            job = candidate_job(self._job, configuration, self.plan.epochs)
            state = JobState(job, self._base, self._data)
            trial = self._study.ask()
            entry = Entry(configuration)
            self._history.add(entry, state)
            self.remaining.append(Candidate(entry, trial, state))
            self._use_sample(state)
            self._share_trunk(state)

    def measure_speed(self) -> float:
        """The speed in tokens trained on a second, from the first steps of the configurations that have
        entered. These steps are the same whatever the length of the race.
        """
        first = self.remaining[0].state
        same = first.options.warmup >= 1 or first.options.schedule == "constant"
        steps = 2 if same and first.total_steps >= 2 else 1
        for _ in range(steps):  # the first one takes longer, and does not count where there are two
            began, before = time.perf_counter(), self.tokens
            self._step(self.remaining)
        return max(1, self.tokens - before) / (time.perf_counter() - began)

    def change_plan(self, plan: RacePlan) -> None:
        """Race by another `plan` from here on."""
        self.plan = plan
        self._study.pruner = HalvingPruner(plan.rungs)
        for candidate in self.remaining:
            state = candidate.state
            state.job = replace(state.job, set={**state.job.set, "epochs": plan.epochs})
            state.options = state.options.model_copy(update={"epochs": plan.epochs})
            self._use_sample(state)

    def run(self) -> None:
        """The whole race. Raises KeyboardInterrupt, OutOfBudget or NobodyLeft where it ends early; `best`
        has the result either way.
        """
        for number, rung in enumerate(self.plan.rungs, start=1):
            self._train_to(rung)
            self._evaluate_rung(number)
            self._prune(number)
            record = {"plan": self.plan, "leaderboard": self.entries}
            self._history.evaluated(self._job.task, number, record)
        self._train_finalists()

    def best(self) -> Candidate:
        """The best candidate so far, in its best state; the others leave the race.

        Where the race ended early, it is the best at or after the last rung, or, before the first rung,
        the best by the latest training losses (all are trained on the same rows). Its present state is
        evaluated once more. Raises OnebaseError where there is nothing to keep.
        """
        evaluated = [one for one in self.remaining if one.state.best_step]
        trained = [
            one for one in self.remaining if one.entry.training_losses and not one.state.diverged
        ]
        if evaluated:
            leader = min(evaluated, key=lambda candidate: candidate.entry.loss)
        elif trained:
            leader = min(trained, key=lambda candidate: _recent_loss(candidate.entry))
        else:
            raise _nothing_to_keep(self.entries)
        state = leader.state
        if not state.diverged and state.step > state.evaluated_step:
            with suppress(KeyboardInterrupt):  # Ctrl-C once more: it is kept without an evaluation
                self._history.rung = None
                self._evaluate([state], None)
        if not state.best_step:
            if state.diverged:
                raise _nothing_to_keep(self.entries)
            state.data = replace(state.data, held_out=[])
            state.record_evaluation(None)
        state.trainable.load_best()
        for candidate in [candidate for candidate in self.remaining if candidate is not leader]:
            self._stop(candidate, self._last_rung + 1, candidate.state.trouble or "stopped")
        # Before the first evaluation there is no value to report.
        value = state.best_loss if math.isfinite(state.best_loss) else None
        outcome = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(leader.trial, value, state=outcome)
        return leader

    def _share_trunk(self, state: JobState) -> None:
        """Compute the layers below the adapter once, for all that begin at the same layer."""
        if not state.depth:
            return
        if self._trunk is None:
            fp16 = state.options.trunk == "fp16"
            self._trunk = Trunk(self._base, dtype="fp16" if fp16 else "fp32")
        if self._trunk.usable(state.depth):
            rows = [*self._data.train, *self._data.held_out]
            self._trunk.prepare(state.depth, [row.ids for row in rows], self._limits.check)

    def _train_to(self, rung: Rung) -> None:
        """Train all that remain up to a rung."""
        while True:
            self._limits.check(self.tokens)
            behind = [
                candidate
                for candidate in self.remaining
                if not candidate.state.diverged
                and candidate.state.step < rung.step(candidate.state.total_steps)
            ]
            if not behind:
                return
            self._step(behind)

    def _train_finalists(self) -> None:
        """Train the finalists to the end, with an evaluation after every epoch; the best of them wins."""
        self._history.rung = None
        finalists = list(self.remaining)
        while True:
            due = [candidate.state for candidate in finalists if candidate.state.evaluation_due]
            if due:
                self._evaluate(due, self._check)
            unfinished = [candidate for candidate in finalists if not candidate.state.done]
            if not unfinished:
                break
            self._check()
            self._step(unfinished)
        winner = min(finalists, key=lambda candidate: candidate.state.best_loss)
        for candidate in finalists:
            if candidate is not winner:
                reason = candidate.state.trouble or "outdone"
                self._stop(candidate, len(self.plan.rungs) + 1, reason)

    def _step(self, candidates: Sequence[Candidate]) -> None:
        """One optimizer step of each."""
        for base, group in self._groups([candidate.state for candidate in candidates]):
            self._check()
            step_together(base, group, self._recorder, trunk=self._trunk)

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

    def _evaluate_rung(self, number: int) -> None:
        """The losses at a rung, over one sample of the held-out rows; at the last rung over all of them.
        From there on only losses over all rows compete.
        """
        self._history.rung = number
        sound = [candidate for candidate in self.remaining if not candidate.state.diverged]
        due = [one.state for one in sound if one.state.step > one.state.evaluated_step]
        self._evaluate(due, self._check)
        for candidate in sound:  # a short training may have two rungs at one step
            last = candidate.entry.evaluations[-1:]
            if last and last[0].rung != number:
                candidate.entry.evaluations.append(replace(last[0], rung=number))
        if number == len(self.plan.rungs) and self.plan.evaluation_rows < len(self._data.held_out):
            for candidate in sound:
                if not candidate.state.diverged:
                    self._evaluate_on_all_rows(candidate)

    def _evaluate_on_all_rows(self, candidate: Candidate) -> None:
        """Evaluate a candidate's best state, chosen by the sample, on all rows; the new loss replaces the
        one at this rung. Abandoned, everything stays as the sample left it.
        """
        state, entry = candidate.state, candidate.entry
        best_step = state.best_step
        present = {name: value.clone() for name, value in state.adapter.state_dict().items()}
        before, by_sample = (state.data, state.best_loss), list(entry.evaluations)
        state.data, state.best_loss = self._data.named(state.task), math.inf
        state.trainable.load_best()
        try:
            self._evaluate([state], self._check)
        finally:
            state.adapter.load_state_dict(present)
            if math.isinf(state.best_loss):
                state.data, state.best_loss = before
        state.best_step = best_step
        # The best state may be that of an earlier rung.
        tokens = next(item.tokens for item in by_sample if item.step == best_step)
        evaluation = replace(entry.evaluations[-1], step=best_step, tokens=tokens)
        entry.evaluations = [*by_sample[:-1], evaluation]

    def _evaluate(self, states: Sequence[JobState], check: Callable[[], None] | None) -> None:
        for base in dict.fromkeys(state.base for state in states):
            group = [state for state in states if state.base is base]
            evaluate_together(base, group, self._recorder, check, trunk=self._trunk)
            self.evaluated_tokens += sum(tokens_of(state.data.held_out) for state in group)
        if self._history.rung is not None:
            for state in states:  # patience counts epochs, not rungs
                state.out_of_patience, state.evaluations_since_best = False, 0

    def _check(self) -> None:
        self._limits.check(self.tokens)

    def _prune(self, number: int) -> None:
        """Stop the worst at a rung."""
        sound = [candidate for candidate in self.remaining if not candidate.state.diverged]
        if not sound:
            raise NobodyLeft
        self._last_rung = number
        for candidate in sound:
            candidate.trial.report(candidate.entry.rung_losses[-1], number)
        pruned = [candidate for candidate in sound if candidate.trial.should_prune()]
        for candidate in list(self.remaining):
            if candidate.state.trouble:
                self._stop(candidate, number, candidate.state.trouble)
            elif candidate in pruned:
                self._stop(candidate, number, "pruned")

    def _stop(self, candidate: Candidate, rung: int, reason: str) -> None:
        """Take a candidate out of the race, and out of memory."""
        candidate.entry.stop = Stop(rung, reason)
        self.remaining.remove(candidate)
        outcomes = {"pruned": TrialState.PRUNED, "outdone": TrialState.COMPLETE}
        outcome = outcomes.get(reason, TrialState.FAIL)
        value = candidate.state.best_loss if outcome == TrialState.COMPLETE else None
        self._study.tell(candidate.trial, value, state=outcome)
        self._history.stopped(candidate.state.task, candidate.state.step, reason)

    def _use_sample(self, state: JobState) -> None:
        """Evaluate it on as many held-out rows as planned, spread evenly over all of them."""
        rows, count = self._data.held_out, self.plan.evaluation_rows
        chosen = [rows[index * len(rows) // count] for index in range(count)]
        held_out = [replace(row, adapter=state.task) for row in chosen]
        state.data = replace(state.data, held_out=held_out)


def candidate_job(job: Job, configuration: Configuration, epochs: int) -> Job:
    """The job of one configuration."""
    return replace(
        job,
        task=f"{job.task}-{configuration.number:02d}",
        method=configuration.method,
        set={**job.set, **configuration.settings, "epochs": epochs},
    )


def _recent_loss(entry: Entry) -> float:
    losses = [loss for _, loss in entry.training_losses[-_RECENT_STEPS:]]
    return sum(losses) / len(losses)


def _nothing_to_keep(entries: Sequence[Entry]) -> OnebaseError:
    if not any(entry.training_losses for entry in entries):
        return OnebaseError(
            say(
                "The race ended before its first training step.", "竞赛在第一个训练步之前就已结束。"
            ),
            say("Give it a larger --budget.", "请增大 --budget。"),
        )
    return OnebaseError(
        say(
            f"The losses of all {len(entries)} configurations exploded or were no longer finite.",
            f"全部 {len(entries)} 个配置的损失都已发散或不是有限值。",
        ),
        say(
            "Race lower learning rates, with --set learning_rate=… or --space.",
            "请用 --set learning_rate=… 或 --space 减小学习率。",
        ),
    )
