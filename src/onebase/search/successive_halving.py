"""Successive halving: all candidates train to a rung together, are evaluated, and the worst stop."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from onebase.errors import OnebaseError
from onebase.language import say
from onebase.search.budget import RacePlan
from onebase.search.candidate import Candidate, StoppedCandidate
from onebase.search.candidate_training import CandidateTraining
from onebase.search.leaderboard import Entry, Stop
from onebase.search.pruner import HalvingPruner, most_finalists
from onebase.search.room import widened
from onebase.search.space import Configuration
from onebase.training.job_state import JobState

_RECENT_STEPS = 5
# Unless a budget decides, ties continue from the first, second and third rung while the race is expected
# to cost at most these shares of training all to the end: later rungs are surer of the best.
_MOST_SHARES_WITH_TIES = (0.3, 0.35, 0.39)
_LEAST_FINALISTS = 2  # if a budget has room for them
_MOST_TIED = 2  # at most so many times as many as planned continue from a rung


class NobodyLeft(Exception):
    """The loss of every remaining configuration has exploded or is no longer finite."""


class SuccessiveHalving:
    """A race of configurations of one job, each with its own settings on top of the job's.

    From a rung, the planned number of candidates continues; those that tie with the last of them
    continue too, and so do as many more as a budget has room for. With a budget, the others are kept in
    `stopped`. `winner` is the best of those that were trained to the end.
    """

    def __init__(self, training: CandidateTraining) -> None:
        self.training = training
        self.base_loss: float | None = None
        self.remaining: list[Candidate] = []
        self.stopped: list[StoppedCandidate] = []
        self.winner: Candidate | None = None
        self._planned = training.plan
        self._last_rung = 0  # the last rung that was reached
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="minimize",
            pruner=HalvingPruner(self.plan.rungs),
            study_name=training.job.task,
        )

    @property
    def plan(self) -> RacePlan:
        """The race as it is planned at present."""
        return self.training.plan

    @property
    def task(self) -> str:
        """The task's name."""
        return self.training.job.task

    @property
    def entries(self) -> list[Entry]:
        """Every configuration that entered the race, by number."""
        return list(self.training.history.entries.values())

    @property
    def longer(self) -> list[Configuration]:
        """The configurations that were trained over more epochs than the race."""
        raced = [entry.configuration for entry in self.entries]
        return [item for item in raced if "epochs" in item.settings]

    def evaluate_base(self) -> None:
        """The bare base's loss over all held-out rows, for comparison."""
        self.base_loss = self.training.base_loss()

    def enter(self, configurations: Sequence[Configuration]) -> None:
        """Build the configurations that are not in the race yet."""
        for configuration in configurations[len(self.entries) :]:
            self.follow(Entry(configuration), self.training.build(configuration))

    def follow(self, entry: Entry, state: JobState) -> Candidate:
        """A candidate that is in the race from here on."""
        candidate = Candidate(entry, self._study.ask(), state)
        self.training.history.add(entry, state)
        self.remaining.append(candidate)
        return candidate

    def measure_speed(self) -> float:
        """The speed in tokens trained on a second, from the first steps of the configurations that have
        entered. These steps are the same whatever the length of the race.
        """
        first = self.remaining[0].state
        same = first.options.warmup >= 1 or first.options.schedule == "constant"
        steps = 2 if same and first.total_steps >= 2 else 1
        for _ in range(steps):  # the first one takes longer, and does not count where there are two
            began, before = time.monotonic(), self.training.tokens
            self.training.step(self.remaining)
        return max(1, self.training.tokens - before) / max(1e-6, time.monotonic() - began)

    def change_plan(self, plan: RacePlan) -> None:
        """Race by another `plan` from here on."""
        self._planned = plan
        self._use_plan(plan)
        for candidate in self.remaining:
            state = candidate.state
            state.job = replace(state.job, set={**state.job.set, "epochs": plan.epochs})
            state.options = state.options.model_copy(update={"epochs": plan.epochs})
            self.training.use_sample(state)

    def expected(self) -> RacePlan:
        """The race that the budget has room for, as far as can be told before its first rung."""
        if not self.training.room.limits.limited:
            return self.plan
        return widened(self.plan, lambda wider: self._fits(wider, 0))

    def run(self) -> None:
        """The whole race. Raises KeyboardInterrupt, OutOfBudget or NobodyLeft where it ends early; `best`
        has the result either way.
        """
        training = self.training
        for number, rung in enumerate(self.plan.rungs, start=1):
            training.train_to(rung, self.remaining)
            training.evaluate_rung(number, self.remaining)
            self._prune(number)
            record = {"plan": self.plan, "leaderboard": self.entries}
            training.history.evaluated(self.task, number, record)
        finalists = list(self.remaining)
        training.train_to_the_end(finalists)
        for candidate in finalists:
            self.settle(candidate)

    def settle(self, candidate: Candidate) -> None:
        """Of a candidate that was trained to the end and the winner so far, the better is the winner; the
        other leaves the race.
        """
        loser = candidate
        if self.winner is None:
            self.winner = candidate
            return
        if self._on_all_rows(candidate) and candidate.entry.loss < self.winner.entry.loss:
            loser, self.winner = self.winner, candidate
        self.stop(loser, len(loser.entry.rung_losses) + 1, loser.state.trouble or "outdone")

    def best(self) -> Candidate:
        """The best candidate so far, in its best state; the others leave the race.

        Where the race ended early, it is the best at or after the last rung, or, before the first rung,
        the best by the latest training losses (all are trained on the same rows). Its present state is
        evaluated once more. Once there is a winner, only losses over all held-out rows compete. Raises
        OnebaseError where there is nothing to keep.
        """
        evaluated = [one for one in self.remaining if one.state.best_step]
        if self.winner is not None:
            evaluated = [one for one in evaluated if one is self.winner or self._on_all_rows(one)]
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
                self.training.history.rung = None
                self.training.evaluate([state], None)
        if not state.best_step:
            if state.diverged:
                raise _nothing_to_keep(self.entries)
            state.data = replace(state.data, held_out=[])
            state.record_evaluation(None)
        state.trainable.load_best()
        for candidate in [candidate for candidate in self.remaining if candidate is not leader]:
            self._stop_early(candidate)
        # Before the first evaluation there is no value to report.
        value = state.best_loss if math.isfinite(state.best_loss) else None
        outcome = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(leader.trial, value, state=outcome)
        return leader

    def stop(self, candidate: Candidate, rung: int, reason: str) -> None:
        """Take a candidate out of the race, and out of memory."""
        candidate.entry.stop = Stop(rung, reason)
        self.remaining.remove(candidate)
        outcomes = {"pruned": TrialState.PRUNED, "outdone": TrialState.COMPLETE}
        outcome = outcomes.get(reason, TrialState.FAIL)
        value = candidate.state.best_loss if outcome == TrialState.COMPLETE else None
        self._study.tell(candidate.trial, value, state=outcome)
        self.training.history.stopped(candidate.state.task, candidate.state.step, reason)

    def _stop_early(self, candidate: Candidate) -> None:
        """Stop a candidate with the whole race."""
        rung = self._last_rung if self.winner is None else len(candidate.entry.rung_losses)
        reason = "outdone" if candidate is self.winner else "stopped"
        self.stop(candidate, rung + 1, candidate.state.trouble or reason)

    def _on_all_rows(self, candidate: Candidate) -> bool:
        """Whether it was evaluated at the last rung, on all rows."""
        rows = [item.rows for item in candidate.entry.evaluations]
        at_last_rung = len(candidate.entry.rung_losses) == len(self.plan.rungs)
        return at_last_rung and rows[-1] == len(self.training.data.held_out)

    def _prune(self, number: int) -> None:
        """Stop the worst at a rung."""
        sound = [candidate for candidate in self.remaining if not candidate.state.diverged]
        if not sound:
            raise NobodyLeft
        self._last_rung = number
        self._use_plan(self._plan_at(number, sound))
        for candidate in sound:
            candidate.trial.report(candidate.entry.rung_losses[-1], number)
        pruned = [candidate for candidate in sound if candidate.trial.should_prune()]
        for candidate in list(self.remaining):
            if candidate.state.trouble:
                self.stop(candidate, number, candidate.state.trouble)
            elif candidate in pruned:
                if self.training.room.limits.limited and not candidate.state.done:
                    self.stopped.append(StoppedCandidate.of(candidate))
                self.stop(candidate, number, "pruned")

    def _plan_at(self, number: int, sound: Sequence[Candidate]) -> RacePlan:
        """The plan from a rung on: as at first, and with those that tie there and those that a budget has
        room for.
        """
        kept = [rung.keep for rung in self.plan.rungs[: number - 1]]
        planned = [rung.keep for rung in self._planned.rungs[number - 1 :]]
        if self.training.room.limits.limited:
            planned[-1] = self._finalists(number, [*kept, *planned], len(sound))
        plan = self.plan.keeping([*kept, *planned])
        for more in range(self._ties(sound, planned[0]), 0, -1):
            wider = plan.keeping([*kept, planned[0] + more, *planned[1:]])
            if self._fits(wider, number):
                self._note_ties(wider, number, planned[0], more)
                plan = wider
                break
        if not self.training.room.limits.limited:
            return plan
        return widened(
            plan, lambda wider: self._fits(wider, number), rung=number, entering=len(sound)
        )

    def _finalists(self, number: int, keeps: Sequence[int], entering: int) -> int:
        """The finalists that a budget has room for, up to the number that a race is designed for: they
        come before ties at earlier rungs.
        """
        before = entering if number == len(keeps) else keeps[-2]
        most = min(before, max(_LEAST_FINALISTS, most_finalists(self.plan.count)))
        for finalists in range(most, keeps[-1], -1):
            if self._fits(self.plan.keeping([*keeps[:-1], finalists]), number):
                return finalists
        return keeps[-1]

    def _ties(self, sound: Sequence[Candidate], keep: int) -> int:
        """How many tie with the last of the `keep` best."""
        best_first = sorted(sound, key=lambda one: (one.entry.rung_losses[-1], one.trial.number))
        ties = 0
        for candidate in best_first[keep : _MOST_TIED * keep]:
            if not self.training.row_losses.tied(best_first[keep - 1], candidate):
                break
            ties += 1
        return ties

    def _fits(self, plan: RacePlan, reached: int) -> bool:
        """Whether the rest of a plan, from a rung on, fits into the budget, or else into what a race may
        cost.
        """
        training, left = self.training, plan.left(reached)
        if training.room.limits.limited:
            return training.room.fits(training.tokens, *left)
        cost = training.tokens + training.evaluated_tokens + sum(left)
        return cost <= _MOST_SHARES_WITH_TIES[reached - 1] * plan.whole

    def _use_plan(self, plan: RacePlan) -> None:
        self.training.plan = plan
        self._study.pruner = HalvingPruner(plan.rungs)

    def _note_ties(self, plan: RacePlan, number: int, planned: int, more: int) -> None:
        share = plan.shares[number - 1]
        text = say(
            f"At {share}, {more} more than the planned {planned} continue: their held-out losses "
            "differ from the last one's by less than the standard error.",
            f"{share} 处比计划的 {planned} 个多留 {more} 个：其留出损失与最后一名之差小于标准误。",
        )
        self.training.note(text, tied=more, rung=number)


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
