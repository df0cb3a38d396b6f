"""Observers of a run: the display on a terminal, the user's own program."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onebase.runs.run import Ending

_log = logging.getLogger("onebase")


@dataclass(frozen=True)
class JobStart:
    """A job at the start of a session: its `title`, and how much of it is `done` of the `total`, in steps
    or tokens. `facts` are sentences for the user, such as the number of rows.
    """

    task: str
    title: str
    done: int
    total: int
    unit: Literal["steps", "tokens"] = "steps"
    facts: tuple[str, ...] = ()


class Observer:
    """Called on every event of a run. A subclass overrides the events that it needs; by default notes
    go to the log, and the other events are ignored.

    `record` has the measurements of a step or an evaluation, as in metrics.jsonl.
    """

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Before the first step of a session; a resumed run has one for each session."""

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """After an optimizer step of a job; for PPO, after a step of rollout and updates."""

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """After an evaluation of a job. Of a race, after each rung too: `step` is then the rung's
        number, and `record` has the `leaderboard`.
        """

    def saved(self, steps: Mapping[str, int]) -> None:
        """After a checkpoint was saved, with each task's step."""

    def stopped(self, task: str, step: int, reason: str) -> None:
        """When a job ends early; `reason` is one word or two: not finite, exploded (its loss); pruned,
        outdone, stopped (of a race); kl, entropy (of PPO).
        """

    def finished(self, status: Ending) -> None:
        """When the run has ended, however it ended."""

    def noted(self, text: str, **facts: Any) -> None:
        """A sentence or two that the user should know, and the same as plain values."""
        _log.warning(text)


class Relay(Observer):
    """Passes every event on to `observer`, or else to the log. A subclass adds to the events it needs."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer or Observer()

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Pass on."""
        self._observer.started(jobs)

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._observer.step(task, step, record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._observer.evaluated(task, step, record)

    def saved(self, steps: Mapping[str, int]) -> None:
        """Pass on."""
        self._observer.saved(steps)

    def stopped(self, task: str, step: int, reason: str) -> None:
        """Pass on."""
        self._observer.stopped(task, step, reason)

    def finished(self, status: Ending) -> None:
        """Pass on."""
        self._observer.finished(status)

    def noted(self, text: str, **facts: Any) -> None:
        """Pass on."""
        self._observer.noted(text, **facts)
