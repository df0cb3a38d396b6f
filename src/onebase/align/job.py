"""A task to align: its data, what training starts from, and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from onebase.adapters.methods import METHODS, parse_options, settings_by_method
from onebase.adapters.store import check_task_name
from onebase.data.encoding import codec_of
from onebase.errors import unknown
from onebase.training.job import Job, check_seed

Chosen = TypeVar("Chosen", bound=BaseModel)


@dataclass(frozen=True)
class AlignJob:
    """One task to align. `data` and `held_out` are files of preferences (for PPO, of prompts).

    With a `method`, training starts from a fresh adapter of it; without, from the task's current adapter,
    or from `start` (`task@2`). `encoding` is that of files that are not UTF-8. `set` holds the options of
    the method and of the algorithm.
    """

    task: str
    data: str | Path
    method: str | None = None
    start: str | None = None
    instruction: str | None = None
    held_out: str | Path | None = None
    template: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    skip_bad: bool = False
    seed: int = 0
    set: Mapping[str, Any] = field(default_factory=dict)

    def options(self, method: str, kind: type[Chosen]) -> Chosen:
        """The job's settings of one `kind`; all others are ignored here (see `check_settings`)."""
        _, rest = settings_by_method(method, self.set)
        return parse_options(kind, {k: v for k, v in rest.items() if k in kind.model_fields})

    def check_settings(self, method: str, *kinds: type[BaseModel]) -> None:
        """Raise UsageError for a wrong value, or a setting that is neither the method's nor in `kinds`."""
        by_method, rest = settings_by_method(method, self.set)
        known = [name for kind in kinds for name in kind.model_fields]
        for key in rest:
            if key not in known:
                fields = [name for part in by_method for name in METHODS[part].options.model_fields]
                raise unknown("setting", "设置项", key, [*known, *fields])
        for name, settings in by_method.items():
            parse_options(METHODS[name].options, settings)
        for kind in kinds:
            self.options(method, kind)

    def training_job(self, method: str, learning_rate: float | None) -> Job:
        """A job with the method's default learning rates, or this one."""
        settings = method_settings(method, self.set)
        if learning_rate is not None:
            settings["learning_rate"] = learning_rate
        return Job(self.task, self.data, method, self.instruction, seed=self.seed, set=settings)


def check_job(job: AlignJob) -> None:
    """Check what does not depend on the base, before anything is loaded. Raises UsageError."""
    check_task_name(job.task)
    check_seed(job.seed)
    if job.encoding is not None:
        codec_of(job.encoding)


def method_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that belong to the method."""
    _, rest = settings_by_method(method, settings)
    return {key: value for key, value in settings.items() if key not in rest}
