"""The history of a race: what its candidates measured, as the leaderboard shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from onebase.runs.observer import JobStart, Observer
from onebase.runs.run import Ending
from onebase.search.leaderboard import Entry, Evaluation
from onebase.training.job_state import JobState


class History(Observer):
    """Writes the losses of every candidate into its entry, and passes all events on. `rung` is the
    number of the rung that is evaluated, None between rungs.
    """

    def __init__(self, observer: Observer | None) -> None:
        self.entries: dict[str, Entry] = {}
        self.rung: int | None = None
        self._states: dict[str, JobState] = {}
        self._observer = observer or Observer()

    def add(self, entry: Entry, state: JobState) -> None:
        """Follow a candidate from here on."""
        self.entries[state.task], self._states[state.task] = entry, state

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Pass on."""
        self._observer.started(jobs)

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A training loss of a candidate."""
        entry = self.entries[task]
        entry.step, entry.tokens = step, record["tokens"]
        entry.training_losses.append((entry.tokens, record["loss"]))
        self._observer.step(task, step, record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A held-out loss of a candidate, or a rung of the whole race."""
        if task in self.entries:
            state = self._states[task]
            rows = len(state.data.held_out)
            evaluation = Evaluation(self.rung, step, state.tokens, record["eval_loss"], rows)
            self.entries[task].evaluations.append(evaluation)
        self._observer.evaluated(task, step, record)

    def saved(self, steps: Mapping[str, int]) -> None:
        """Pass on."""
        self._observer.saved(steps)

    def stopped(self, task: str, step: int, reason: str) -> None:
        """A candidate has left the race; its state is freed."""
        self._states.pop(task, None)
        self._observer.stopped(task, step, reason)

    def finished(self, status: Ending) -> None:
        """Pass on."""
        self._observer.finished(status)

    def noted(self, text: str, **facts: Any) -> None:
        """Pass on."""
        self._observer.noted(text, **facts)
