"""The training of one arm in a process of its own: what a method takes alone.

    python -m onebase.compare.alone < request.json

The process loads the base, trains, evaluates and stores as `onebase train` does. It writes its events
to stdout, a JSON object a line, and at last what it took.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from onebase.adapters.workspace import Workspace
from onebase.compare.data import comparison_data
from onebase.compare.options import CompareOptions
from onebase.errors import OnebaseError
from onebase.language import set_language
from onebase.model.base import Base
from onebase.planning.free_memory import peak_memory
from onebase.runs.observer import JobStart, Observer
from onebase.training.job import Job
from onebase.training.train import NothingStored, train_on


class _Events(Observer):
    """Writes the events that the parent shows."""

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Every job's start."""
        _write(started=[asdict(job) for job in jobs])

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A step's measurements."""
        _write(step=step, task=task, record=record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """An evaluation's measurements."""
        _write(evaluated=step, task=task, record=record)

    def noted(self, text: str, **facts: Any) -> None:
        """A note."""
        _write(noted=text)


def train_alone(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train the arm of `request`; returns what the process took. Raises what a training does."""
    base = Base.load(request["base"], precision=request["precision"])
    rendered_at = datetime.fromisoformat(request["rendered_at"])
    compared, options = Job(**request["job"]), CompareOptions(**request["options"])
    data = comparison_data(compared, options, base, rendered_at)
    lost = False
    try:
        train_on(
            data.training,
            [Job(**request["arm"])],
            base=base,
            workspace=Workspace(request["workspace"]),
            rendered_at=rendered_at,
            observer=_Events(),
        )
    except NothingStored:
        lost = True
    return {
        "lost": lost,
        "peak_memory_bytes": peak_memory(base.device.type),
        "cpu_seconds": time.process_time(),
    }


def request_for(
    job: Job,
    arm: Job,
    options: CompareOptions,
    base: Base,
    precision: str,
    *,
    rendered_at: datetime,
    workspace: Path,
    language: str,
) -> dict[str, Any]:
    """The request to the process, in values that JSON has."""
    return {
        "base": base.name,
        "precision": precision,
        "job": _plain(job),
        "arm": _plain(arm),
        "options": asdict(options),
        "rendered_at": rendered_at.isoformat(),
        "workspace": str(workspace),
        "language": language,
        "threads": torch.get_num_threads(),
    }


def _plain(job: Job) -> dict[str, Any]:
    held_out = None if job.held_out is None else str(job.held_out)
    return {**asdict(job), "data": str(job.data), "held_out": held_out}


def _write(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    set_language(request["language"])
    torch.set_num_threads(request["threads"])
    try:
        result = train_alone(request)
    except OnebaseError as error:
        _write(error={"message": error.message, "remedy": error.remedy})
        sys.exit(error.exit_code)
    _write(result=result)


if __name__ == "__main__":
    main()
