"""The live display of a run: a progress bar for each job, and a race's leaderboard."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from onebase.adapters.workspace import Workspace
from onebase.cli.leaderboard import leaderboard_header, leaderboard_rows
from onebase.cli.measurements import name_of
from onebase.cli.session import note
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.quantity import duration
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import JobStart, Observer
from onebase.search.leaderboard import ranked
from onebase.serving.server_lock import yield_to_server

# The measurements to show of a step and of an evaluation, if a record has them.
_STEP = ("loss", "reward", "kl", "entropy", "pair_accuracy", "margin")
_EVALUATION = ("eval_loss", "pair_accuracy", "eval_reward", "eval_kl", "margin")


class RunDisplay(Observer):
    """Progress bars on a terminal. Otherwise one line per evaluation; for an alignment also one per tenth
    of its steps.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._live = Live(self._progress, console=self._progress.console)
        self._terminal = sys.stderr.isatty()
        self._jobs: dict[str, JobStart] = {}
        self._bars: dict[str, TaskID] = {}
        self._evaluations: dict[str, str] = {}
        self._tokens: dict[str, int] = {}
        self._began: dict[str, float] = {}  # by task

    def __enter__(self) -> Self:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._terminal:
            self._live.stop()

    def started(self, jobs: Sequence[JobStart]) -> None:
        """Add a bar for each job, and print the job's facts."""
        # The result of a race shows the leaderboard again.
        self._live.transient = any(job.unit == "tokens" for job in jobs)
        for job in jobs:
            self._jobs[job.task] = job
            self._began[job.task] = time.perf_counter()
            self._bars[job.task] = self._progress.add_task(
                job.title, total=job.total, completed=job.done, numbers=""
            )
            for fact in job.facts:
                note(fact if job.unit == "tokens" else f"{job.title}: {fact}")

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Advance the job's bar, or the token bar of a race."""
        numbers = record.get("arm") or _numbers(_STEP, record)
        if task not in self._bars:
            self._move_race(task, record, numbers)
            return
        job = self._jobs[task]
        if "tokens_per_second" in record:
            numbers += f"  {record['tokens_per_second']:.0f} tok/s"
        elif not self._terminal and step % max(1, job.total // 10) == 0:
            count = say(f"step {step}/{job.total}", f"第 {step}/{job.total} 步")
            note(f"{job.task}: " + ", ".join(filter(None, (count, numbers))))
        self._progress.update(
            self._bars[task],
            completed=step,
            numbers="  ".join(filter(None, (numbers, self._evaluations.get(task)))),
        )

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        """Show the held-out measurements, or a race's leaderboard after a rung."""
        if "leaderboard" in record:
            self._show_leaderboard(step, record)
        if task not in self._bars or "leaderboard" in record:
            return
        self._evaluations[task] = _numbers(_EVALUATION, record)
        if self._terminal:
            return
        job = self._jobs[task]
        text = say(
            f"step {step}/{job.total}, {self._evaluations[task]}",
            f"第 {step}/{job.total} 步，{self._evaluations[task]}",
        )
        if job.done < step < job.total:
            seconds = time.perf_counter() - self._began[task]
            left = duration(seconds / (step - job.done) * (job.total - step))
            text += say(f", about {left} left", f"，约剩 {left}")
        note(f"{task}: {text}")

    def noted(self, text: str, **facts: Any) -> None:
        """Print a note above the bars."""
        note(text)

    def _move_race(self, task: str, record: Mapping[str, Any], numbers: str) -> None:
        self._tokens[task] = record["tokens"]
        completed = sum(self._tokens.values())
        for name, bar in self._bars.items():
            total = max(self._jobs[name].total, completed)  # more may be continued than planned
            text = f"{task} {numbers}"
            self._progress.update(bar, completed=completed, total=total, numbers=text)

    def _show_leaderboard(self, rung: int, record: Mapping[str, Any]) -> None:
        plan, entries = record["plan"], ranked(record["leaderboard"])
        if self._terminal:
            table = Table(*leaderboard_header(plan))
            for entry, row in zip(entries, leaderboard_rows(plan, entries), strict=True):
                table.add_row(*map(str, row), style="dim" if entry.stop else "bold")
            self._live.update(Group(table, self._progress))
            return
        remaining = [entry for entry in entries if entry.stop is None]
        best, share = remaining[0], plan.shares[rung - 1]
        note(
            say(
                f"At {share}: {len(remaining)} of {len(entries)} continue; best: "
                f"{best.configuration.number} {best.configuration.text}, held-out loss "
                f"{best.rung_losses[-1]:.3f}",
                f"{share} 处：{len(entries)} 个中留下 {len(remaining)} 个；最佳："
                f"{best.configuration.number} {best.configuration.text}，留出损失 "
                f"{best.rung_losses[-1]:.3f}",
            )
        )


def _numbers(keys: Sequence[str], record: Mapping[str, Any]) -> str:
    return "  ".join(f"{name_of(key)} {record[key]:.3f}" for key in keys if key in record)


class Stopped(OnebaseError):
    """The error with which an interrupted command exits."""

    code = Interrupted.code
    exit_code = Interrupted.exit_code


@contextmanager
def run_display(workspace: Workspace) -> Iterator[RunDisplay]:
    """The display of a run, which yields the CPU to a running server of the workspace.

    Raises Stopped after Ctrl-C, with the command that resumes the run.
    """
    try:
        with yield_to_server(workspace), RunDisplay() as display:
            yield display
    except Interrupted as stop:
        # Typer would end silently at any KeyboardInterrupt.
        raise Stopped(stop.message, stop.remedy) from stop
