"""A run's record while it trains: metrics.jsonl, what was skipped, what the user should know."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from onebase.data.example import BadRow
from onebase.language import say
from onebase.runs.run import Run
from onebase.training.job_state import Learner
from onebase.training.loop import Watcher

_log = logging.getLogger("onebase")


@runtime_checkable
class Listener(Protocol):
    """A watcher that is told what the user should know; without one it goes to the log."""

    def noted(self, text: str) -> None:
        """A sentence or two."""


def list_skipped(run: Run, task: str, bad: Sequence[BadRow]) -> None:
    """Write the rows of a task's data that are left out into the run's folder. Raises OSError."""
    if not bad:
        return
    lines = [
        {"file": row.file, "line": row.line, "column": row.column, "reason": row.reason}
        for row in bad
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (run.path / f"skipped-{task}.jsonl").write_text(text, encoding="utf-8")


class RunRecorder:
    """Writes what happens into the run's folder and passes it on to `watcher`. Lines that a full
    disk refuses are kept and written later.
    """

    def __init__(self, run: Run, watcher: Watcher | None = None) -> None:
        self._run = run
        self._watcher = watcher
        self._unwritten: list[dict[str, Any]] = []
        self._refused = False

    def started(self, learners: Sequence[Learner]) -> None:
        """Note what could not be used, and pass on."""
        for learner in learners:
            list_skipped(self._run, learner.job.task, learner.data.bad)
        if self._watcher:
            self._watcher.started(learners)

    def base_judged(self, losses: dict[str, float]) -> None:
        """The bare base's held-out loss of every task."""
        for task, loss in losses.items():
            self._write(task=task, base_eval_loss=loss)

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """One optimizer step."""
        self._write(task=learner.job.task, **record)
        if self._watcher:
            self._watcher.learned(learner, record)

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """One evaluation."""
        self._write(task=learner.job.task, **record)
        if self._watcher:
            self._watcher.judged(learner, record)

    def noted(self, text: str, *, task: str | None = None, **record: Any) -> None:
        """Something that the user should know, and in plain values what it was."""
        self._write(task=task, note=text, **record)
        if isinstance(self._watcher, Listener):
            self._watcher.noted(text)
        else:
            _log.warning(text)

    def write(self) -> None:
        """Write what is still unwritten. Raises OSError."""
        while self._unwritten:
            self._run.log(**self._unwritten[0])
            del self._unwritten[0]
        self._refused = False

    def _write(self, **fields: Any) -> None:
        self._unwritten.append({"time": round(time.time(), 3), **fields})
        try:
            self.write()
        except OSError as error:
            if not self._refused:
                self._refused = True
                reason = error.strerror or str(error)
                self.noted(
                    say(
                        f"metrics.jsonl of run {self._run.id} can't be written: {reason}. "
                        "Training goes on, and writes it later: make room on the disk.",
                        f"无法写入训练 {self._run.id} 的 metrics.jsonl：{reason}。"
                        "训练继续进行，稍后再写入：请清理磁盘空间。",
                    )
                )
