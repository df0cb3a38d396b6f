"""The course of a race: all survivors learn to a rung together, are judged, and losers leave."""

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
from onebase.search.history import Follower, RaceWatcher
from onebase.search.leaderboard import Left, Place
from onebase.search.pruner import HalvingPruner, Rung
from onebase.search.space import Configuration
from onebase.training.job import Job
from onebase.training.job_state import Learner, TaskData
from onebase.training.loop import evaluate_together, mean_losses, pack_tokens, step_together

# Between two looks at the clock and at Ctrl-C: as many as fill so many packs learn in one go.
_GROUP_PACKS = 2
_RECENT_STEPS = 5


class NobodyLeft(Exception):
    """The loss of every configuration that was left has exploded or is no longer finite."""


@dataclass
class Entrant:
    """A configuration while it is in the race."""

    place: Place
    trial: Trial
    learner: Learner


class Course:
    """A race of configurations of one `job`, each with its settings on top of the job's.

    What survives has learned exactly what it would have alone: its rows, their order and its
    learning rate's schedule are those of the full length from the first step on.
    """

    def __init__(
        self,
        base: Base,
        job: Job,
        data: TaskData,
        plan: RacePlan,
        recorder: RunRecorder,
        follower: Follower,
        limits: Limits,
    ) -> None:
        self._base = base
        self._job = job
        self._data = data
        self._learned = tokens_of(data.train)
        self._recorder = recorder
        self._follower = follower
        self._limits = limits
        self._reached = 0  # the last rung that was come to
        self._trunk: Trunk | None = None
        self.plan = plan
        self.base_loss: float | None = None
        self.judged_tokens = 0
        self.alive: list[Entrant] = []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="minimize", pruner=HalvingPruner(plan.ladder), study_name=job.task
        )

    @property
    def places(self) -> list[Place]:
        """Every configuration that was entered, by number."""
        return list(self._follower.places.values())

    @property
    def tokens(self) -> int:
        """Tokens learned from, all configurations together."""
        return sum(place.tokens for place in self.places)

    def judge_base(self) -> None:
        """The bare base's loss over all held-out rows, to compare with."""
        rows = [row.bare() for row in self._data.held_out]
        (self.base_loss,) = mean_losses(self._base, rows, {}, self._limits.check).values()
        self._recorder.base_judged({self._job.task: self.base_loss})
        self.judged_tokens += tokens_of(rows)

    def enter(self, configurations: Sequence[Configuration]) -> None:
        """Build what is not in the race yet."""
        for configuration in configurations[len(self.places) :]:
            self._limits.check()
            job = entrant_job(self._job, configuration, self.plan.epochs)
            learner = Learner(job, self._base, self._data)
            trial = self._study.ask()
            trial.set_user_attr("method", configuration.method)
            trial.set_user_attr("settings", dict(configuration.settings))
            place = Place(configuration)
            self._follower.places[job.task] = place
            self.alive.append(Entrant(place, trial, learner))
            self._sample(learner)
            self._share_trunk(learner)

    def _share_trunk(self, learner: Learner) -> None:
        """Have what lies below the learner's adapter computed once, for all that begin there."""
        if not learner.depth:
            return
        if self._trunk is None:
            fp16 = learner.options.trunk == "fp16"
            self._trunk = Trunk(self._base, dtype="fp16" if fp16 else "fp32")
        if self._trunk.usable(learner.depth):
            rows = [*self._data.train, *self._data.held_out]
            self._trunk.prepare(learner.depth, [row.ids for row in rows], self._limits.check)

    def measure(self) -> float:
        """The speed in tokens learned from a second, by the first steps of those entered: steps
        that are the same whatever the length is.
        """
        first = self.alive[0].learner
        held = first.options.warmup >= 1 or first.options.schedule == "constant"
        steps = 2 if held and first.total_steps >= 2 else 1
        for _ in range(steps):  # the first takes longer, and does not count where there are two
            began, before = time.perf_counter(), self.tokens
            self._step(self.alive)
        return max(1, self.tokens - before) / (time.perf_counter() - began)

    def settle_on(self, plan: RacePlan) -> None:
        """Race as `plan` says, whatever was planned before."""
        self.plan = plan
        self._study.pruner = HalvingPruner(plan.ladder)
        for entrant in self.alive:
            learner = entrant.learner
            settings = {**learner.job.set, "epochs": plan.epochs}
            learner.job = replace(learner.job, set=settings)
            learner.options = learner.options.model_copy(update={"epochs": plan.epochs})
            self._sample(learner)

    def run(self, watcher: RaceWatcher | None) -> None:
        """The whole race. Raises KeyboardInterrupt, OutOfBudget or NobodyLeft where it ends
        early; `best` has what it leaves, either way.
        """
        for number, rung in enumerate(self.plan.ladder, start=1):
            self._learn_to(rung)
            self._judge(number)
            self._halve(number)
            if watcher:
                watcher.halved(number, self.places)
        self._to_the_end()

    def best(self) -> Entrant:
        """The best so far, in its best state; the others are out of the race.

        Where the race ended early: the best from the last rung on, or, before the first one, by
        its latest training losses (all learn from the same rows). Its present state is judged
        once more. Raises OnebaseError where there is nothing to keep.
        """
        judged = [entrant for entrant in self.alive if entrant.learner.best_step]
        learning = [e for e in self.alive if e.place.trained and not e.learner.diverged]
        if judged:
            leader = min(judged, key=lambda entrant: entrant.place.loss)
        elif learning:
            leader = min(learning, key=lambda entrant: _recent(entrant.place))
        else:
            raise _nothing_to_keep(self.places)
        learner = leader.learner
        if not learner.diverged and learner.step > learner.judged_step:
            with suppress(KeyboardInterrupt):  # asked to stop once more: it is kept unjudged
                self._follower.rung = None
                self._evaluate([learner], None)
        if not learner.best_step:
            if learner.diverged:
                raise _nothing_to_keep(self.places)
            learner.data = replace(learner.data, held_out=[])
            learner.judge(None)
        learner.adapter.load_state_dict(learner.best)
        for entrant in [entrant for entrant in self.alive if entrant is not leader]:
            self._leave(entrant, self._reached + 1, entrant.learner.trouble or "stopped")
        # Before the first evaluation there is no value to tell.
        value = learner.best_loss if math.isfinite(learner.best_loss) else None
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(leader.trial, value, state=state)
        return leader

    def _learn_to(self, rung: Rung) -> None:
        """Everyone learns up to a rung."""
        while True:
            self._limits.check(self.tokens)
            behind = [
                entrant
                for entrant in self.alive
                if not entrant.learner.diverged
                and entrant.learner.step < rung.step(entrant.learner.total_steps)
            ]
            if not behind:
                return
            self._step(behind)

    def _step(self, entrants: Sequence[Entrant]) -> None:
        """One optimizer step of each."""
        for base, group in self._groups([entrant.learner for entrant in entrants]):
            self._limits.check(self.tokens)
            step_together(base, group, self._recorder, trunk=self._trunk)

    def _groups(self, learners: Sequence[Learner]) -> Iterator[tuple[Base, list[Learner]]]:
        """Those on one base, so many that their rows fill a few packs."""
        for base in dict.fromkeys(learner.base for learner in learners):
            group: list[Learner] = []
            tokens = 0.0
            for learner in (learner for learner in learners if learner.base is base):
                group.append(learner)
                tokens += self._learned / learner.steps_an_epoch
                if tokens >= _GROUP_PACKS * pack_tokens(base.device):
                    yield base, group
                    group, tokens = [], 0.0
            if group:
                yield base, group

    def _judge(self, rung: int) -> None:
        """Everyone's loss at a rung, over the same sample of the held-out rows; at the last rung
        over all of them, from where on only such losses compete.
        """
        self._follower.rung = rung
        sound = [entrant for entrant in self.alive if not entrant.learner.diverged]
        due = [e.learner for e in sound if e.learner.step > e.learner.judged_step]
        self._evaluate(due, lambda: self._limits.check(self.tokens))
        for entrant in sound:  # a short training may have two rungs at one step
            last = entrant.place.judged[-1:]
            if last and last[0].rung != rung:
                entrant.place.judged.append(replace(last[0], rung=rung))
        if rung == len(self.plan.ladder) and self.plan.judged_rows < len(self._data.held_out):
            for entrant in sound:
                if not entrant.learner.diverged:
                    self._judge_anew(entrant)

    def _halve(self, number: int) -> None:
        """The losers of a rung leave."""
        sound = [entrant for entrant in self.alive if not entrant.learner.diverged]
        if not sound:
            raise NobodyLeft
        self._reached = number
        for entrant in sound:
            entrant.trial.report(entrant.place.rungs[-1], number)
        pruned = [entrant for entrant in sound if entrant.trial.should_prune()]
        for entrant in list(self.alive):
            if entrant.learner.trouble:
                self._leave(entrant, number, entrant.learner.trouble)
            elif entrant in pruned:
                self._leave(entrant, number, "pruned")

    def _leave(self, entrant: Entrant, rung: int, reason: str) -> None:
        """Out of the race, and out of memory."""
        entrant.place.left = Left(rung, reason)
        self.alive.remove(entrant)
        ends: dict[str, TrialState] = {"pruned": TrialState.PRUNED, "outdone": TrialState.COMPLETE}
        state = ends.get(reason, TrialState.FAIL)
        value = entrant.learner.best_loss if state == TrialState.COMPLETE else None
        self._study.tell(entrant.trial, value, state=state)

    def _to_the_end(self) -> None:
        """The finalists learn on, judged after every epoch; the best of them wins."""
        self._follower.rung = None
        finalists = list(self.alive)
        while True:
            due = [entrant.learner for entrant in finalists if entrant.learner.due]
            if due:
                self._evaluate(due, lambda: self._limits.check(self.tokens))
            learning = [entrant for entrant in finalists if not entrant.learner.done]
            if not learning:
                break
            self._limits.check(self.tokens)
            self._step(learning)
        winner = min(finalists, key=lambda entrant: entrant.learner.best_loss)
        for entrant in finalists:
            if entrant is not winner:
                reason = entrant.learner.trouble or "outdone"
                self._leave(entrant, len(self.plan.ladder) + 1, reason)

    def _judge_anew(self, entrant: Entrant) -> None:
        """The best state by a sample, judged by all rows instead, in the place of its loss at this
        rung. Abandoned, it stands as the sample left it.
        """
        learner, place = entrant.learner, entrant.place
        best, now = learner.best_step, learner.adapter.state_dict()
        now = {name: value.clone() for name, value in now.items()}
        before, known = (learner.data, learner.best_loss), list(place.judged)
        learner.data, learner.best_loss = self._data.named(learner.job.task), math.inf
        learner.adapter.load_state_dict(learner.best)
        try:
            self._evaluate([learner], lambda: self._limits.check(self.tokens))
        finally:
            learner.adapter.load_state_dict(now)
            if math.isinf(learner.best_loss):
                learner.data, learner.best_loss = before
        learner.best_step = best
        # The state may be one of an earlier rung.
        tokens = next(item.tokens for item in known if item.step == best)
        verdict = replace(place.judged[-1], step=best, tokens=tokens)
        place.judged = [*known[:-1], verdict]

    def _evaluate(self, learners: Sequence[Learner], check: Callable[[], None] | None) -> None:
        for base in dict.fromkeys(learner.base for learner in learners):
            own = [learner for learner in learners if learner.base is base]
            evaluate_together(base, own, self._recorder, check, trunk=self._trunk)
            self.judged_tokens += sum(tokens_of(learner.data.held_out) for learner in own)
        if self._follower.rung is not None:
            for learner in learners:  # patience counts epochs, not rungs
                learner.stopped, learner.evaluations_since_best = False, 0

    def _sample(self, learner: Learner) -> None:
        """Let it be judged by as many held-out rows as planned, spread over all of them."""
        rows, count = self._data.held_out, self.plan.judged_rows
        chosen = [rows[index * len(rows) // count] for index in range(count)]
        named = [replace(row, adapter=learner.job.task) for row in chosen]
        learner.data = replace(learner.data, held_out=named)


def entrant_job(job: Job, configuration: Configuration, epochs: int) -> Job:
    """The job of one configuration."""
    return replace(
        job,
        task=f"{job.task}-{configuration.number:02d}",
        method=configuration.method,
        set={**job.set, **configuration.settings, "epochs": epochs},
    )


def _recent(place: Place) -> float:
    losses = [loss for _, loss in place.trained[-_RECENT_STEPS:]]
    return sum(losses) / len(losses)


def _nothing_to_keep(places: Sequence[Place]) -> OnebaseError:
    if not any(place.trained for place in places):
        return OnebaseError(
            say("The race ended before anything was learned.", "竞赛在学到任何内容之前就已结束。"),
            say("Give it a larger --budget.", "请增大 --budget。"),
        )
    return OnebaseError(
        say(
            f"The losses of all {len(places)} configurations exploded or were no longer finite.",
            f"全部 {len(places)} 个配置的损失都已发散或不是有限值。",
        ),
        say(
            "Race lower learning rates, with --set learning_rate=… or --space.",
            "请用 --set learning_rate=… 或 --space 减小学习率。",
        ),
    )
