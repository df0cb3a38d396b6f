"""The history of a race: the losses of its candidates, for the leaderboard."""

from collections.abc import Mapping
from typing import Any

from onebase.runs.observer import Observer, Relay
from onebase.search.leaderboard import Entry, Evaluation
from onebase.training.job_state import JobState


class History(Relay):
    """Writes the losses of every candidate into its entry, and passes all events on. `rung` is the
    number of the rung that is evaluated, None between rungs.
    """

    def __init__(self, observer: Observer | None) -> None:
        super().__init__(observer)
        self.entries: dict[str, Entry] = {}
        self.rung: int | None = None
        self._states: dict[str, JobState] = {}

    def add(self, entry: Entry, state: JobState) -> None:
        """Follow a candidate from here on."""
        self.entries[state.task], self._states[state.task] = entry, state

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A training loss of a candidate."""
        entry = self.entries[task]
        entry.step, entry.tokens = step, record["tokens"]
        entry.training_losses.append((entry.tokens, record["loss"]))
        super().step(task, step, record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A held-out loss of a candidate, or a rung of the whole race."""
        if task in self.entries:
            state = self._states[task]
            rows = len(state.data.held_out)
            evaluation = Evaluation(self.rung, step, state.tokens, record["eval_loss"], rows)
            self.entries[task].evaluations.append(evaluation)
        super().evaluated(task, step, record)

    def stopped(self, task: str, step: int, reason: str) -> None:
        """A candidate has left the race; its state is freed."""
        self._states.pop(task, None)
        super().stopped(task, step, reason)
