"""Tuning the methods of a comparison: a race for each, with the same budget of tokens."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import Workspace, write_whole
from onebase.compare.data import ComparisonData
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.search.budget import Budget
from onebase.search.race import race
from onebase.search.space import default_space
from onebase.training.job import Job


class Tuning:
    """Chooses the settings of one method after another on the training and validation rows, by a race of
    `tokens` each; the held-out rows are not seen. Results are kept in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        tokens: int,
        data: ComparisonData,
        observer: Observer,
        inner: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._folder = folder
        self._tokens = tokens
        self._data = data
        self._observer = observer
        self._inner = inner

    def settings(self, job: Job, base: Base) -> dict[str, Any]:
        """The best settings of a job's method, with the epochs of the race: those of an earlier session,
        or of a race now. What the job sets already stays.
        """
        file = self._folder / f"tuned-{job.method.replace('+', '-')}.json"
        if file.exists():
            kept: dict[str, Any] = json.loads(file.read_bytes())
            return kept
        self._observer.noted(
            say(
                f"Tuning {job.method}: a race of {self._tokens:,} tokens.",
                f"正在为 {job.method} 选择设置：{self._tokens:,} 个词元的竞赛。",
            )
        )
        with self._inner():
            raced = race(
                job,
                base=base,
                workspace=Workspace(self._folder / "tuning"),
                observer=self._observer,
                space=default_space([job.method], fixed=list(job.set)),
                budget=Budget(tokens=self._tokens),
                data=self._data.training,
                rendered_at=self._data.rendered_at,
            )
        best = raced.entries[0].configuration
        settings = {**best.settings, "epochs": raced.plan.epochs, **job.set}
        write_whole(file, json.dumps(settings, ensure_ascii=False) + "\n")
        return settings
