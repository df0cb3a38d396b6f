"""A run's record on disk: metrics.jsonl, samples.jsonl, and the rows that were left out."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from onebase.data.example import BadRow
from onebase.language import say
from onebase.runs.observer import Observer, Relay
from onebase.runs.run import Run, cut, size_of


class RunRecorder(Relay):
    """Writes every event into the run's folder and passes it on to `observer`. Lines that a full disk
    refuses are kept in memory and written later.

    With `by_task`, each line of metrics.jsonl names its task.
    """

    def __init__(self, run: Run, observer: Observer | None = None, *, by_task: bool = True) -> None:
        super().__init__(observer)
        self._run = run
        self._by_task = by_task
        self._unwritten: list[dict[str, Any]] = []
        self._refused = False

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Write the measurements of a step."""
        self._write(task, step=step, **record)
        super().step(task, step, record)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Write the measurements of an evaluation."""
        self._write(task, step=step, **record)
        super().evaluated(task, step, record)

    def base_evaluated(self, losses: Mapping[str, float]) -> None:
        """Write the held-out loss of the bare base, by task."""
        for task, loss in losses.items():
            self._write(task, base_eval_loss=loss)

    def noted(self, text: str, **facts: Any) -> None:
        """Write a note; `facts` may name its `task`."""
        self._write(**{"task": None, "note": text, **facts})
        super().noted(text, **facts)

    def left_out(self, task: str, rows: Sequence[BadRow]) -> None:
        """List the rows of a task's data that are left out in skipped-TASK.jsonl."""
        if not rows:
            return
        lines = [
            {"file": row.file, "line": row.line, "column": row.column, "reason": row.reason}
            for row in rows
        ]
        with suppress(OSError):  # a full disk: the next line of metrics.jsonl tells
            (self._run.path / f"skipped-{task}.jsonl").write_text(_lines(lines), encoding="utf-8")

    def sampled(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Append answers to samples.jsonl: all of them, or none where the disk is full."""
        size = size_of(self._run.samples)
        try:
            with self._run.samples.open("ab") as stream:
                stream.write(_lines(answers).encode())
        except OSError:
            with suppress(OSError):
                cut(self._run.samples, size)

    def flush(self) -> None:
        """Write what is still unwritten. Raises OSError."""
        while self._unwritten:
            self._run.log(**self._unwritten[0])
            del self._unwritten[0]
        self._refused = False

    def _write(self, task: str | None, **fields: Any) -> None:
        named = {"task": task} if self._by_task else {}
        self._unwritten.append({"time": round(time.time(), 3), **named, **fields})
        try:
            self.flush()
        except OSError as error:
            if not self._refused:
                self._refused = True
                reason = error.strerror or str(error)
                self.noted(
                    say(
                        f"metrics.jsonl of run {self._run.id} can't be written: {reason}. "
                        "Training continues, and the lines are written later: free some disk space.",
                        f"无法写入训练 {self._run.id} 的 metrics.jsonl：{reason}。"
                        "训练继续进行，稍后再写入：请清理磁盘空间。",
                    )
                )


def _lines(values: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
