"""The live display of a training: a line a job with loss, tokens/s and the time left."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onebase.cli.session import note
from onebase.language import say
from onebase.training.job_state import Learner


def bars(counted: str = "{task.completed}/{task.total}") -> Progress:
    """Bars on stderr: what is done, how much of it, `numbers`, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(counted),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class TrainingDisplay:
    """A Watcher that draws bars on a terminal and prints a line an evaluation elsewhere."""

    def __init__(self) -> None:
        self._progress = bars()
        self._bars: dict[str, TaskID] = {}
        self._judged: dict[str, float] = {}
        self._resumed: dict[str, int] = {}
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if sys.stderr.isatty():
            self._progress.stop()

    def started(self, learners: Sequence[Learner]) -> None:
        """Draw a bar for every job, and say what was cut."""
        for learner in learners:
            job = learner.job
            name = f"{job.task} ({job.method})"
            self._resumed[job.task] = learner.step
            self._bars[job.task] = self._progress.add_task(
                name, total=learner.total_steps, completed=learner.step, numbers=""
            )
            note(
                f"{name}: "
                + say(
                    f"{len(learner.data.train)} rows, {len(learner.data.held_out)} held out, "
                    f"{learner.adapter.trainable():,} trainable parameters",
                    f"{len(learner.data.train)} 行训练，{len(learner.data.held_out)} 行留出，"
                    f"{learner.adapter.trainable():,} 个可训练参数",
                )
            )
            if learner.data.truncated:
                note(
                    say(
                        f"  {learner.data.truncated} rows were longer than "
                        f"{learner.options.max_tokens} tokens: their question was cut at its end.",
                        f"  有 {learner.data.truncated} 行超过 {learner.options.max_tokens} 个词元："
                        "问题末尾被截断。",
                    )
                )

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """Move the job's bar."""
        task = learner.job.task
        judged = self._judged.get(task)
        held = "" if judged is None else say(f" held-out {judged:.3f}", f" 留出 {judged:.3f}")
        self._progress.update(
            self._bars[task],
            completed=learner.step,
            numbers=say("loss", "损失")
            + f" {record['loss']:.3f}{held}  {record['tokens_per_second']:.0f} tok/s",
        )

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """Show the held-out loss; off a terminal, as a line."""
        self._judged[learner.job.task] = record["eval_loss"]
        if sys.stderr.isatty():
            return
        elapsed = time.perf_counter() - self._began
        learned = max(1, learner.step - self._resumed[learner.job.task])
        left = elapsed / learned * (learner.total_steps - learner.step)
        note(
            f"{learner.job.task}: "
            + say(
                f"step {learner.step}/{learner.total_steps}, held-out loss "
                f"{record['eval_loss']:.3f}, about {left:.0f} s left",
                f"第 {learner.step}/{learner.total_steps} 步，留出损失 {record['eval_loss']:.3f}，"
                f"约剩 {left:.0f} 秒",
            )
        )

    def noted(self, text: str) -> None:
        """Print a sentence above the bars."""
        note(text)
