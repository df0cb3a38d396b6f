"""Tuning the methods of a comparison: a race for each, with the same budget of tokens."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import Workspace, write_whole
from onebase.compare.data import ComparisonData
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import Observer, Relay
from onebase.search.budget import Budget
from onebase.search.race import race
from onebase.search.space import Space, default_space
from onebase.training.job import Job


class _Races(Relay):
    """Passes the events of a race on to the comparison, but for its leaderboards: the race keeps them, and
    they are no plain values.
    """

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A candidate's evaluation."""
        if "leaderboard" not in record:
            super().evaluated(task, step, record)


class Tuning:
    """Chooses the settings of one method after another on the training and validation rows, by a race of
    `tokens` each; the held-out rows are not seen. Results are kept in `folder`. `inner` is
    entered around every race, and `check` is called before each, as for the trainings.
    """

    def __init__(
        self,
        folder: Path,
        tokens: int,
        data: ComparisonData,
        observer: Observer,
        inner: Callable[[], AbstractContextManager[None]],
        check: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._tokens = tokens
        self._data = data
        self._observer = _Races(observer)
        self._inner = inner
        self._check = check

    def settings(self, job: Job, base: Base, identity: str) -> dict[str, Any]:
        """The best settings of a job's method: those of an earlier race with this `identity`, in this run
        or another one, or of a race now. What the job sets already stays. Raises KeyboardInterrupt
        after Ctrl-C.
        """
        name = f"tuned-{identity}.json"
        for file in sorted(self._folder.parent.glob(f"*/{name}")):
            kept: dict[str, Any] = json.loads(file.read_bytes())
            return kept
        fixed = [key.rpartition(".")[2] for key in job.set]
        space = default_space([job.method], fixed=fixed)
        chosen = dict(job.set)
        if len(space.configurations) > 1:
            chosen = {**self._raced(job, base, space), **job.set}
        write_whole(self._folder / name, json.dumps(chosen, ensure_ascii=False) + "\n")
        return chosen

    def _raced(self, job: Job, base: Base, space: Space) -> dict[str, Any]:
        """The settings of a race's winner, with its epochs."""
        self._observer.noted(
            say(
                f"Tuning {job.method}: a race of {self._tokens:,} tokens.",
                f"正在为 {job.method} 选择设置：{self._tokens:,} 个词元的竞赛。",
            )
        )
        self._check()
        with self._inner():
            raced = race(
                job,
                base=base,
                workspace=Workspace(self._folder / "tuning"),
                observer=self._observer,
                space=space,
                budget=Budget(tokens=self._tokens),
                data=self._data.training,
                rendered_at=self._data.rendered_at,
            )
        if raced.end == "interrupted":
            raise KeyboardInterrupt
        best = raced.entries[0].configuration
        return {"epochs": raced.plan.epochs, **best.settings}
