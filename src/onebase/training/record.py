"""A run's record while it trains: metrics.jsonl, checkpoints, what was skipped."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from onebase.adapters.runs import Run
from onebase.training.learner import Learner
from onebase.training.loop import Watcher


class RunRecorder:
    """Writes what happens into the run's folder and passes it on to `watcher`.

    Each evaluation leaves a checkpoint of its job, written aside and renamed; the best and the
    newest `save_limit` others are kept.
    """

    def __init__(self, run: Run, watcher: Watcher | None = None) -> None:
        self._run = run
        self._watcher = watcher

    def started(self, learners: Sequence[Learner]) -> None:
        """Note what could not be used, and pass on."""
        for learner in learners:
            bad = learner.data.bad
            if bad:
                file = self._run.path / f"skipped-{learner.job.task}.jsonl"
                lines = [
                    {"file": r.file, "line": r.line, "column": r.column, "reason": r.reason}
                    for r in bad
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                file.write_text(text, encoding="utf-8")
        if self._watcher:
            self._watcher.started(learners)

    def base_judged(self, losses: dict[str, float]) -> None:
        """The bare base's held-out loss of every task."""
        for task, loss in losses.items():
            self._run.log(task=task, base_eval_loss=loss)

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """One optimizer step."""
        self._run.log(task=learner.job.task, **record)
        if self._watcher:
            self._watcher.learned(learner, record)

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """One evaluation, and its checkpoint."""
        self._run.log(task=learner.job.task, **record)
        self._save(learner)
        if self._watcher:
            self._watcher.judged(learner, record)

    def _save(self, learner: Learner) -> None:
        folder = self._run.checkpoints / learner.job.task
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"step-{learner.step:06d}.pt"
        partial = file.with_suffix(".partial")
        torch.save(learner.state(), partial)
        partial.rename(file)
        kept = {folder / f"step-{learner.best_step:06d}.pt"}
        others = [path for path in sorted(folder.glob("step-*.pt")) if path not in kept]
        limit = learner.options.save_limit
        for old in others[: max(0, len(others) - limit)]:
            old.unlink(missing_ok=True)
