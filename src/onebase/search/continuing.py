"""What is left of a race's budget: stopped candidates are continued, then the best is trained for longer."""

from dataclasses import replace

from onebase.language import say
from onebase.search.budget import RacePlan
from onebase.search.candidate import Candidate, StoppedCandidate
from onebase.search.leaderboard import Entry
from onebase.search.space import Configuration
from onebase.search.successive_halving import SuccessiveHalving

# The winner is trained again for at most this many times the race's epochs.
_MOST_LONGER = 4


class Continuing:
    """Spends what is left of a budget after the planned race.

    A stopped candidate continues where it was stopped, as it would have been trained alone, and the best
    of all that were trained to the end is the winner. Where all were, the winner's configuration is
    trained again, for as many epochs as fit, if it `may_train_longer`.
    """

    def __init__(self, halving: SuccessiveHalving, *, may_train_longer: bool) -> None:
        self._halving = halving
        self._training = halving.training
        self._may_train_longer = may_train_longer

    def run(self) -> None:
        """Until nothing fits. Raises KeyboardInterrupt or OutOfBudget."""
        while (stopped := self._next()) is not None:
            self._continue(stopped)
        if self._may_train_longer and not self._halving.stopped:
            epochs = self._most_epochs()
            if epochs > self._halving.plan.epochs:
                self._train_longer(epochs)

    def _next(self) -> StoppedCandidate | None:
        """The most promising stopped candidate that fits: the latest rung first, then the smallest loss."""
        best_first = sorted(
            self._halving.stopped,
            key=lambda one: (-one.reached, one.entry.loss, one.entry.configuration.number),
        )
        return next((stopped for stopped in best_first if self._fits(stopped)), None)

    def _fits(self, stopped: StoppedCandidate) -> bool:
        plan = self._halving.plan
        trained = plan.epochs * plan.size.trained - stopped.trained
        return self._fits_alone(plan, trained, stopped.begins_at)

    def _fits_alone(self, plan: RacePlan, trained: int, reached: int) -> bool:
        """Whether one candidate fits, with `trained` tokens, from a rung to the end of a plan."""
        alone = replace(plan, count=1).keeping([1] * len(plan.rungs))
        evaluated = alone.left(reached)[1]
        return self._training.room.fits_alone(self._training.tokens, trained, evaluated)

    def _most_epochs(self) -> int:
        """The most epochs that one candidate can be trained for, from its first step."""
        plan = self._halving.plan
        for epochs in range(_MOST_LONGER * plan.epochs, plan.epochs, -1):
            longer = replace(plan, epochs=epochs)
            if self._fits_alone(longer, epochs * plan.size.trained, 0):
                return epochs
        return plan.epochs

    def _continue(self, stopped: StoppedCandidate) -> None:
        entry, plan, begins_at = stopped.entry, self._halving.plan, stopped.begins_at
        self._halving.stopped.remove(stopped)
        name, share = _name(entry.configuration), plan.shares[stopped.reached - 1]
        if stopped.saved is None:
            text = say(
                f"Part of the budget is left: {name}, stopped at {share}, is trained again, to the end.",
                f"预算尚有剩余：{name} 曾在 {share} 处停止，现在从头训练到底。",
            )
        else:
            text = say(
                f"Part of the budget is left: {name}, stopped at {share}, continues.",
                f"预算尚有剩余：{name} 曾在 {share} 处停止，现在继续训练。",
            )
        self._training.note(text, continued=entry.configuration.number)
        state = self._training.build(entry.configuration)
        if stopped.saved is None:
            self._training.repeated_tokens += entry.tokens
            entry.begin_again()
        else:
            state.load_state_dict(stopped.saved)
        if begins_at == len(plan.rungs):
            self._training.use_all_rows(state)
        entry.stop, entry.continued_from = None, stopped.reached
        self._train(self._halving.follow(entry, state), begins_at)

    def _train_longer(self, epochs: int) -> None:
        """Train the winner's configuration again, over more epochs; the better of the two wins."""
        winner = self._halving.winner
        assert winner is not None, "the planned race has ended"
        configuration = winner.entry.configuration
        number = 1 + max(entry.configuration.number for entry in self._halving.entries)
        settings = {**configuration.settings, "epochs": epochs}
        longer = Configuration(number, configuration.method, settings)
        self._training.note(
            say(
                f"Part of the budget is left, and nothing to continue: {_name(configuration)} is trained "
                f"again, over {epochs} epochs.",
                f"预算尚有剩余，且没有可继续的配置：{_name(configuration)} 重新训练 {epochs} 个 epoch。",
            ),
            longer=configuration.number,
            epochs=epochs,
        )
        self._train(self._halving.follow(Entry(longer), self._training.build(longer)), 0)

    def _train(self, candidate: Candidate, reached: int) -> None:
        """Train a candidate by itself from a rung to the end; it wins or leaves the race."""
        for number, rung in enumerate(self._halving.plan.rungs, start=1):
            if number > reached:
                self._training.train_to(rung, [candidate])
                self._training.evaluate_rung(number, [candidate])
        self._training.train_to_the_end([candidate])
        self._halving.settle(candidate)
        self._note_result(candidate)

    def _note_result(self, candidate: Candidate) -> None:
        name, winner = _name(candidate.entry.configuration), self._halving.winner
        if candidate is winner:
            text = say(
                f"{name} ends at {candidate.entry.loss:.3f}, the best so far.",
                f"{name} 最终留出损失为 {candidate.entry.loss:.3f}，为目前最佳。",
            )
        else:
            text = say(f"{name} does not end better.", f"{name} 最终没有更好。")
        self._training.note(text, number=candidate.entry.configuration.number)


def _name(configuration: Configuration) -> str:
    return f"{configuration.number} ({configuration.text})"
