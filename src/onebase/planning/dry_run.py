"""A dry run of a training, in a process of its own, which measures memory and time.

    python -m onebase.planning.dry_run < request.json > measured.json

Peak memory can only be read for a whole process. The dry run is a training like any other, with
evaluation, checkpoint and stored adapters, but of a few representative steps, and in a workspace that is
deleted afterwards.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.errors import OnebaseError, error_as_values
from onebase.language import set_language
from onebase.model.base import Base
from onebase.planning.free_memory import held_memory, peak_memory
from onebase.planning.representative_steps import (
    Phase,
    RepresentativeSteps,
    choose,
    evaluation_tokens,
)
from onebase.runs.observer import JobStart, Observer
from onebase.runs.session import RunSession
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.loop import base_losses, train_together
from onebase.training.run_config import run_config
from onebase.training.stored_result import store_job
from onebase.training.train import JointTraining, joint_session


class _Clock(Observer):
    """Takes the time of steps, evaluations and saves, between the steps of `joint`. It saves one
    checkpoint more, during the training of the first job.
    """

    def __init__(self) -> None:
        self.joint: JointTraining | None = None
        self.run: RunSession | None = None
        self.trunk = 0.0
        self.steps: list[float] = []
        self.evaluating = 0.0
        self.saving: float | None = None
        self._since = time.perf_counter()
        self._step_ended: float | None = None

    def started(self, jobs: Sequence[JobStart]) -> None:
        """The joint loop begins."""
        self._since = time.perf_counter()

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """The step of a job has ended."""
        self._step_ended = time.perf_counter()

    def noted(self, text: str, **facts: Any) -> None:
        """Notes are of the real run, not of this one."""

    def between_steps(self, *, evaluated: bool = False) -> None:
        """Between two joint steps, and before the first on each base."""
        assert self.joint is not None
        assert self.run is not None
        now = time.perf_counter()
        if self._step_ended is None:
            self.trunk += now - self._since
        else:
            self.steps.append(self._step_ended - self._since)
            self.evaluating += now - self._step_ended if evaluated else 0.0
        self.joint.between_steps(evaluated=evaluated)
        if self.steps and self.saving is None:
            began = time.perf_counter()
            self.run.save()
            self.saving = time.perf_counter() - began
        self._step_ended, self._since = None, time.perf_counter()

    def check(self) -> None:
        """Between two passes of an evaluation."""
        assert self.joint is not None
        self.joint.check()


def dry_run(request: dict[str, Any]) -> dict[str, Any]:
    """Try the jobs of `request` on its base; returns what was measured, in bytes, seconds and tokens.

    `aside_seconds` is the time of what a training does not do. Raises what a training would.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = {"idle": held_memory(device)}
    base = Base.load(request["base"], precision=request["precision"])
    memory["loaded"] = held_memory(device)
    states = [JobState(Job(**job), base) for job in request["jobs"]]
    memory["built"] = held_memory(device)
    config = run_config(base, states)
    began = time.perf_counter()
    whole = {
        "tasks": [_whole(state) for state in states],
        "rows": [state.data for state in states],  # in memory, as in a training
        "trunk_tokens": _trunk_tokens(states),
        "evaluations": _evaluations(states),
    }
    bases = dict.fromkeys(state.base for state in states)
    representative = [choose([one for one in states if one.base is base]) for base in bases]
    for steps in representative:
        steps.apply()
    aside = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="onebase-plan-") as folder:
        measured = _train(base, states, config, Path(folder), memory)
    began = time.perf_counter()
    base_losses(base, states)  # again: the first pass takes longer than the others
    again = time.perf_counter() - began
    aside += again + (measured["saving_seconds"] or 0.0)
    step_seconds = measured.pop("steps")
    del whole["rows"]
    return {
        "device": base.device.type,
        "threads": torch.get_num_threads(),
        "precision": base.precision.text,
        **measured,
        "memory": memory,
        "aside_seconds": aside,
        "base_judging_seconds": again,
        "base_judged_tokens": sum(_base_evaluation_tokens(state) for state in states),
        "judged_tokens": sum(
            evaluation_tokens(state.data.held_out, base.device) for state in states
        ),
        "tried_evaluations": _evaluations(states),
        "tried_trunk_tokens": _trunk_tokens(states),
        "trunk_token_bytes": max(
            (2 if state.options.trunk == "fp16" else 4) * state.base.shape.hidden
            for state in states
        ),
        "phases": _phases(representative, step_seconds),
        "trouble": [state.task for state in states if state.trouble],
        **whole,
    }


def _train(
    base: Base,
    states: Sequence[JobState],
    config: dict[str, Any],
    folder: Path,
    memory: dict[str, int],
) -> dict[str, Any]:
    """The training itself, from the base's losses to the stored adapters, in `folder`."""
    workspace, clock = Workspace(folder), _Clock()
    with joint_session(states, config, base, workspace, observer=clock) as run:
        joint = JointTraining(states, run)
        run.restore(joint, [])
        clock.joint, clock.run = joint, run
        joint.base_losses = base_losses(base, states)
        run.recorder.started([state.start for state in states])
        train_together(states, run.recorder, clock)
        stored: list[StoredAdapter] = []
        # A full disk shows in the plan's own numbers.
        with suppress(OSError, SafetensorError, OnebaseError), run.storing(workspace):
            stored += [store_job(workspace, base, run.run, state, None) for state in states]
        memory["peak"] = peak_memory(base.device.type)
        sizes = [_bytes(checkpoint) for checkpoint in run.run.checkpoints.glob("[0-9]*")]
    return {
        "trunk_seconds": clock.trunk,
        "steps": clock.steps,
        "judging_seconds": clock.evaluating,
        "saving_seconds": clock.saving,
        "checkpoint_bytes": max(sizes, default=0),
        "adapter_bytes": {item.task: item.bytes for item in stored},
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _whole(state: JobState) -> dict[str, Any]:
    """Exact counts for the whole training of a job."""
    data, options = state.data, state.options
    return {
        "task": state.task,
        "method": state.adapter.method,
        "trainable": state.adapter.trainable(),
        "state_bytes": sum(p.numel() * p.element_size() for p in state.adapter.parameters()),
        "rows": len(data.train),
        "held_out": len(data.held_out),
        "longest": max(len(row.ids) for row in data.train),
        "steps": state.total_steps,
        "epochs": options.epochs,
        "judged_tokens": evaluation_tokens(data.held_out, state.base.device),
        "base_judged_tokens": _base_evaluation_tokens(state),
        "notes": state.notes,
    }


def _base_evaluation_tokens(state: JobState) -> int:
    bare = [row.bare() for row in state.data.held_out]
    return evaluation_tokens(bare, state.base.device)


def _evaluations(states: Sequence[JobState]) -> int:
    """The evaluations of the joint loop; jobs that are evaluated together count once."""
    return len(
        {
            (id(state.base), epoch * state.steps_an_epoch)
            for state in states
            for epoch in range(1, state.options.epochs + 1)
        }
    )


def _trunk_tokens(states: Iterable[JobState]) -> int:
    """The tokens of the texts that the frozen trunk computes and keeps."""
    texts = {
        (state.depth, row.ids)
        for state in states
        if state.depth
        for row in (*state.data.train, *state.data.held_out)
    }
    return sum(len(ids) for _, ids in texts)


def _phases(
    representative: Sequence[RepresentativeSteps], seconds: Sequence[float]
) -> list[dict[str, Any]]:
    """Counts and times of every phase, base after base."""
    phases, at = [], 0
    for steps in representative:
        for phase in steps.phases:
            end = at + len(phase.chosen)
            phases.append(_phase(phase, list(seconds[at:end]), len(steps.states)))
            at = end
    return phases


def _phase(phase: Phase, seconds: Sequence[float], jobs: int) -> dict[str, Any]:
    top = phase.heaviest
    return {
        "steps": phase.steps,
        "tokens": phase.tokens,
        "trial_tokens": phase.chosen_tokens,
        "trial_seconds": seconds,
        "heavy": phase.heavy,
        "jobs": jobs,
        "pass": {"tokens": top.pass_tokens, "rows": top.pass_rows, "longest": top.longest},
    }


def main() -> None:
    """Answer the request on stdin with one JSON object: what was measured, or the error."""
    request = json.load(sys.stdin)
    set_language(request["language"])
    torch.set_num_threads(request["threads"])
    try:
        result = dry_run(request)
    except OnebaseError as error:
        result = {"error": error_as_values(error)}
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        result = {"out_of_memory": str(error)}
    print(json.dumps(result))


def _out_of_memory(error: Exception) -> bool:
    """Whether it says that there is no more memory: on a CPU torch has no error of its own."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


if __name__ == "__main__":
    main()
