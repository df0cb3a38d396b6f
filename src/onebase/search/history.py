"""Who follows a race: the notes that become its ladder, and who is told what happens."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from onebase.runs.recorder import Listener
from onebase.search.budget import RacePlan
from onebase.search.leaderboard import Judged, Place
from onebase.search.space import Configuration
from onebase.training.job_state import Learner
from onebase.training.loop import Watcher

_log = logging.getLogger("onebase")


class RaceWatcher(Watcher, Protocol):
    """A watcher of a race is told two things more."""

    def planned(self, plan: RacePlan, configurations: Sequence[Configuration]) -> None:
        """Before the first rung."""

    def halved(self, rung: int, places: Sequence[Place]) -> None:
        """After each rung, counted from 1."""


class Follower:
    """Notes on the ladder what its entrants learn and how they are judged; passes it on."""

    def __init__(self, watcher: RaceWatcher | None) -> None:
        self.places: dict[str, Place] = {}
        self.rung: int | None = None
        self._watcher = watcher

    def started(self, learners: Sequence[Learner]) -> None:
        """Pass on."""
        if self._watcher:
            self._watcher.started(learners)

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """One step of one entrant."""
        place = self.places[learner.job.task]
        place.step, place.tokens = learner.step, learner.tokens
        place.trained.append((learner.tokens, record["loss"]))
        if self._watcher:
            self._watcher.learned(learner, record)

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """One held-out loss of one entrant."""
        rows = len(learner.data.held_out)
        judged = Judged(self.rung, learner.step, learner.tokens, record["eval_loss"], rows)
        self.places[learner.job.task].judged.append(judged)
        if self._watcher:
            self._watcher.judged(learner, record)

    def noted(self, text: str) -> None:
        """Pass on to who listens, else to the log."""
        if isinstance(self._watcher, Listener):
            self._watcher.noted(text)
        else:
            _log.warning(text)
