"""A candidate of a race: a configuration in training, or stopped and kept to be continued."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from optuna.trial import Trial

from onebase.search.leaderboard import Entry
from onebase.search.space import Configuration
from onebase.training.job import Job
from onebase.training.job_state import JobState


@dataclass
class Candidate:
    """A configuration while it is in the race."""

    entry: Entry
    trial: Trial
    state: JobState


@dataclass(frozen=True)
class StoppedCandidate:
    """A configuration that was stopped at the rung that it had `reached` (counted from 1). `saved` has its
    adapter, optimizer, counters and the order of its rows, as in a checkpoint, in main memory. Of full
    fine-tuning, which trains a model of its own, nothing is kept (None): it begins again.
    """

    entry: Entry
    reached: int
    saved: dict[str, Any] | None

    @classmethod
    def of(cls, candidate: Candidate) -> "StoppedCandidate":
        """A candidate between two steps."""
        state = candidate.state
        saved = None if state.adapter.full is not None else _in_main_memory(state.state_dict())
        return cls(candidate.entry, len(candidate.entry.rung_losses), saved)

    @property
    def begins_at(self) -> int:
        """The rung that it is continued from; 0 is the beginning."""
        return 0 if self.saved is None else self.reached

    @property
    def trained(self) -> int:
        """The tokens of the training that needn't be repeated."""
        return 0 if self.saved is None else self.entry.tokens


def candidate_job(job: Job, configuration: Configuration, epochs: int) -> Job:
    """The job of one configuration."""
    return replace(
        job,
        task=f"{job.task}-{configuration.number:02d}",
        method=configuration.method,
        set={**job.set, "epochs": epochs, **configuration.settings},
    )


def _in_main_memory(value: Any) -> Any:
    """The same nested value, with tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _in_main_memory(item) for key, item in value.items()}
    return [_in_main_memory(item) for item in value] if isinstance(value, list) else value
