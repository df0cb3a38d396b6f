"""The training of one arm in a process of its own: what a method takes alone.

    python -m onebase.compare.alone < request.json

The process loads the base, trains, evaluates and stores as `onebase train` does. It writes its events
to stdout, a JSON object a line, and at last what it took; what libraries print goes to stderr.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import torch

from onebase.adapters.workspace import Workspace
from onebase.compare.data import ComparisonData, comparison_data
from onebase.compare.options import CompareOptions
from onebase.errors import DataError, OnebaseError, UsageError, error_as_values
from onebase.language import language, say, set_language
from onebase.model.base import Base
from onebase.planning.free_memory import peak_memory
from onebase.runs.observer import JobStart, Observer
from onebase.training.job import Job
from onebase.training.run_config import as_given
from onebase.training.train import NothingStored, train_on


class _Events(Observer):
    """Writes the events that the parent shows."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Every job's start."""
        self._write(started=[asdict(job) for job in jobs])

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """A step's measurements."""
        self._write(step=step, task=task, record=record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """An evaluation's measurements."""
        self._write(evaluated=step, task=task, record=record)

    def noted(self, text: str, **facts: Any) -> None:
        """A note."""
        self._write(noted=text)


def train_alone(request: Mapping[str, Any], write: Callable[..., None]) -> dict[str, Any]:
    """Train the arm of `request`; returns what the process took. Raises what a training does, DataError
    where the rows are not those of the comparison any more, UsageError where the base is not.
    """
    base = Base.load(request["base"], precision=request["precision"])
    if base.content != request["base_content"]:
        raise _another_base(base)
    rendered_at = datetime.fromisoformat(request["rendered_at"])
    compared, options = Job(**request["job"]), CompareOptions(**request["options"])
    data = comparison_data(compared, options, base, rendered_at)
    if data.digest() != request["rows_sha256"]:
        raise _rows_changed(compared)
    lost = False
    try:
        train_on(
            data.training,
            [Job(**request["arm"])],
            base=base,
            workspace=Workspace(request["workspace"]),
            rendered_at=rendered_at,
            observer=_Events(write),
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
    data: ComparisonData,
    workspace: Path,
) -> dict[str, Any]:
    """The request to the process, in values that JSON has."""
    return {
        "base": base.name,
        "base_content": base.content,
        "precision": base.precision.text,
        "job": as_given(job),
        "arm": as_given(arm),
        "options": asdict(options),
        "rendered_at": data.rendered_at.isoformat(),
        "rows_sha256": data.digest(),
        "workspace": str(workspace),
        "language": language(),
        "threads": torch.get_num_threads(),
    }


def _another_base(base: Base) -> UsageError:
    return UsageError(
        say(
            f"{base.name} as it is stored is not the base that is compared: its weights were changed.",
            f"{base.name} 在磁盘上的权重与当前对比的基座不同。",
        ),
        say(
            "Save the changed base as a folder of its own, or compare with --no-alone.",
            "请将改动后的基座另存为单独的目录，或使用 --no-alone。",
        ),
    )


def _rows_changed(job: Job) -> DataError:
    return DataError(
        say(
            f"{job.data} has changed since the comparison began.",
            f"{job.data} 在对比开始之后发生了变化。",
        ),
        say("Restore it, or start a new comparison.", "请恢复该文件，或重新开始对比。"),
    )


def _end_with_parent(parent: int) -> None:
    """End this process when its parent ends, however that ends: nobody would store the result."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _event_stream() -> TextIO:
    """Stdout for events alone; from now on everything else that is printed goes to stderr."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def main() -> None:
    """Answer the request on stdin."""
    events = _event_stream()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    def write(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    request = json.load(sys.stdin)
    set_language(request["language"])
    torch.set_num_threads(request["threads"])
    try:
        result = train_alone(request, write)
    except OnebaseError as error:
        write(error=error_as_values(error))
        sys.exit(error.exit_code)
    write(result=result)


if __name__ == "__main__":
    main()
