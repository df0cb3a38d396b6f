"""A short trial of a training, in a process of its own: what it takes in memory and time.

    python -m onebase.planning.dry_run < request.json > measured.json

Peak memory can only be read for a whole process. The trial is a training like any other, with
evaluation, checkpoint and stored adapters, but of the few steps that `trial` chooses and in a
workspace that is thrown away.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.errors import OnebaseError
from onebase.language import set_language
from onebase.model.base import Base
from onebase.planning.free_memory import held_memory, peak_memory
from onebase.planning.representative_steps import Phase, Trial, choose, judged_tokens
from onebase.runs.checkpointer import RunKeeper
from onebase.runs.interruption import Interruption
from onebase.runs.recorder import RunRecorder
from onebase.runs.run import Run
from onebase.training.job import Job
from onebase.training.job_state import Learner
from onebase.training.loop import base_losses, train_together
from onebase.training.run_config import request_of
from onebase.training.stored_result import store_once


class _Clock:
    """A watcher and keeper that takes the time of what it passes on to `keeper`, and saves one
    checkpoint more, in the middle of the first job's learning.
    """

    def __init__(self, keeper: RunKeeper) -> None:
        self._keeper = keeper
        self.trunk = 0.0
        self.steps: list[float] = []
        self.judging = 0.0
        self.saving: float | None = None
        self._since = time.perf_counter()
        self._learned: float | None = None

    def started(self, learners: Sequence[Learner]) -> None:
        """The joint loop begins."""
        self._since = time.perf_counter()

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """A job's step is done."""
        self._learned = time.perf_counter()

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """A job is judged."""

    def noted(self, text: str) -> None:
        """What the user should know of the real run, not of this one."""

    def between(self, *, judged: bool) -> None:
        """Between two joint steps, and before the first on each base."""
        now = time.perf_counter()
        if self._learned is None:
            self.trunk += now - self._since
        else:
            self.steps.append(self._learned - self._since)
            self.judging += now - self._learned if judged else 0.0
        self._keeper.between(judged=judged)
        if self.steps and self.saving is None:
            began = time.perf_counter()
            self._keeper.save()
            self.saving = time.perf_counter() - began
        self._learned, self._since = None, time.perf_counter()

    def check(self) -> None:
        """Between two passes of an evaluation."""
        self._keeper.check()


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Try the jobs of `request` on its base; what was measured, in bytes, seconds and tokens.

    `aside_seconds` went into what a training does not do. Raises what a training would.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = {"idle": held_memory(device)}
    base = Base.load(request["base"], precision=request["precision"])
    memory["loaded"] = held_memory(device)
    learners = [Learner(Job(**job), base) for job in request["jobs"]]
    memory["built"] = held_memory(device)
    config = request_of(base, learners)
    began = time.perf_counter()
    whole = {
        "tasks": [_whole(learner) for learner in learners],
        "rows": [learner.data for learner in learners],  # a training has them all at hand
        "trunk_tokens": _trunk_tokens(learners),
        "evaluations": _evaluations(learners),
    }
    bases = dict.fromkeys(learner.base for learner in learners)
    trials = [choose([one for one in learners if one.base is own]) for own in bases]
    for trial in trials:
        trial.shorten()
    aside = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="onebase-plan-") as folder:
        measured = _train(base, learners, config, Path(folder), memory)
    began = time.perf_counter()
    base_losses(base, learners)  # once more, and now without what only the first pass takes
    again = time.perf_counter() - began
    aside += again + (measured["saving_seconds"] or 0.0)
    steps = measured.pop("steps")
    del whole["rows"]
    return {
        "device": base.device.type,
        "threads": torch.get_num_threads(),
        "precision": base.precision.text,
        **measured,
        "memory": memory,
        "aside_seconds": aside,
        "base_judging_seconds": again,
        "base_judged_tokens": sum(_judged_bare(learner) for learner in learners),
        "judged_tokens": sum(
            judged_tokens(learner.data.held_out, base.device) for learner in learners
        ),
        "tried_evaluations": _evaluations(learners),
        "tried_trunk_tokens": _trunk_tokens(learners),
        "trunk_token_bytes": max(_trunk_token_bytes(learner) for learner in learners),
        "phases": _phases(trials, steps),
        "trouble": [learner.job.task for learner in learners if learner.trouble],
        **whole,
    }


def _train(
    base: Base,
    learners: Sequence[Learner],
    config: dict[str, Any],
    folder: Path,
    memory: dict[str, int],
) -> dict[str, Any]:
    """The trial itself, from the base's losses to the stored adapters, in `folder`."""
    workspace = Workspace(folder)
    run = Run.create(workspace, config)
    recorder = RunRecorder(run)
    keeper = RunKeeper(run, learners, config, recorder, Interruption())
    clock = _Clock(keeper)
    recorder = RunRecorder(run, clock)
    torch.manual_seed(learners[0].job.seed)
    keeper.base_losses = base_losses(base, learners)
    train_together(learners, recorder, clock)
    keeper.close()
    stored: list[StoredAdapter] = []
    with suppress(OSError, SafetensorError):  # a full disk shows in the plan's own numbers
        store = AdapterStore(workspace)
        stored = [store_once(store, base, run, one, None) for one in learners]
    memory["peak"] = peak_memory(base.device.type)
    sizes = [_bytes(checkpoint) for checkpoint in run.checkpoints.glob("[0-9]*")]
    return {
        "trunk_seconds": clock.trunk,
        "steps": clock.steps,
        "judging_seconds": clock.judging,
        "saving_seconds": clock.saving,
        "checkpoint_bytes": max(sizes, default=0),
        "adapter_bytes": {item.task: item.bytes for item in stored},
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _whole(learner: Learner) -> dict[str, Any]:
    """What the job will do in all: counts that are exact."""
    data, options = learner.data, learner.options
    return {
        "task": learner.job.task,
        "method": learner.adapter.method,
        "trainable": learner.adapter.trainable(),
        "state_bytes": sum(p.numel() * p.element_size() for p in learner.adapter.parameters()),
        "rows": len(data.train),
        "held_out": len(data.held_out),
        "longest": max(len(row.ids) for row in data.train),
        "steps": learner.total_steps,
        "epochs": options.epochs,
        "judged_tokens": judged_tokens(data.held_out, learner.base.device),
        "base_judged_tokens": _judged_bare(learner),
        "notes": learner.notes,
    }


def _judged_bare(learner: Learner) -> int:
    bare = [row.bare() for row in learner.data.held_out]
    return judged_tokens(bare, learner.base.device)


def _evaluations(learners: Sequence[Learner]) -> int:
    """How many times the joint loop stops for an evaluation, whatever the number of jobs."""
    return len(
        {
            (id(learner.base), epoch * learner.steps_an_epoch)
            for learner in learners
            for epoch in range(1, learner.options.epochs + 1)
        }
    )


def _trunk_tokens(learners: Iterable[Learner]) -> int:
    """The tokens of the texts that the frozen trunk computes and keeps."""
    texts = {
        (learner.depth, row.ids)
        for learner in learners
        if learner.depth
        for row in (*learner.data.train, *learner.data.held_out)
    }
    return sum(len(ids) for _, ids in texts)


def _trunk_token_bytes(learner: Learner) -> int:
    width = 2 if learner.options.trunk == "fp16" else 4
    return width * learner.base.shape.hidden


def _phases(trials: Sequence[Trial], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Counts and times of every phase, those on one base after those on another."""
    phases, at = [], 0
    for trial in trials:
        for phase in trial.phases:
            own = list(seconds[at : at + len(phase.trial)])
            at += len(phase.trial)
            phases.append(_phase(phase, own, len(trial.learners)))
    return phases


def _phase(phase: Phase, seconds: Sequence[float], learners: int) -> dict[str, Any]:
    top = phase.heaviest
    return {
        "steps": phase.steps,
        "tokens": phase.tokens,
        "trial_tokens": phase.trial_tokens,
        "trial_seconds": seconds,
        "heavy": phase.heavy,
        "jobs": learners,
        "pass": {"tokens": top.pass_tokens, "rows": top.pass_rows, "longest": top.longest},
    }


def main() -> None:
    """Answer the request on stdin with one JSON object: what was measured, or the error."""
    request = json.load(sys.stdin)
    set_language(request["language"])
    torch.set_num_threads(request["threads"])
    try:
        result = probe(request)
    except OnebaseError as error:
        detail = {"code": error.code, "message": error.message, "remedy": error.remedy}
        result = {"error": detail}
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
