"""The session of a run: the one frame that every trainer works in.

with run_session(config, base, workspace, seed, earlier=earlier, observer=observer) as run:
    run.restore(training)
    ...
    run.between_steps()
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from safetensors import SafetensorError

from onebase.adapters.workspace import Workspace
from onebase.data.example import BadRow
from onebase.data.template import Template
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.checkpointer import SAVE_LIMIT, SAVE_SECONDS, Checkpointer, Stateful
from onebase.runs.interruption import Interrupted, Interruption
from onebase.runs.observer import Observer
from onebase.runs.recorder import RunRecorder
from onebase.runs.render_date import earlier_date_notes
from onebase.runs.resume import resume_command
from onebase.runs.run import Ending, Run


class RunSession:
    """A run while this process works on it; made by `run_session`.

    `recorder` takes every event; `summary` goes into summary.json when the run ends.
    """

    def __init__(
        self,
        run: Run,
        recorder: RunRecorder,
        checkpointer: Checkpointer,
        interruption: Interruption,
        *,
        resumed: bool,
    ) -> None:
        self.run = run
        self.recorder = recorder
        self.interruption = interruption
        self.summary: dict[str, Any] = {}
        self.ending: Ending | None = None
        self.restored = not resumed
        self._checkpointer = checkpointer
        self._resumed = resumed

    @property
    def seconds(self) -> float:
        """How long the run has taken, all its sessions together."""
        return self._checkpointer.seconds

    def restore(
        self,
        training: Stateful,
        templates: Sequence[Template],
        *,
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Continue `training` from the newest good checkpoint, where the run was interrupted. From now
        on it is what the run saves. `templates` rendered its rows; `check` refuses the config of a
        checkpoint by an error.
        """
        self._checkpointer.trained = training
        if not self._resumed:
            return
        self._checkpointer.restore(training, check)
        self.run.reopen()
        self.restored = True
        notes = (text for one in templates for text in earlier_date_notes(self.run, one))
        for text in dict.fromkeys(notes):
            self.note(text)

    def between_steps(self, *, evaluated: bool = False) -> None:
        """Between two steps: save where it is time. Raises KeyboardInterrupt, the run saved, where the
        user pressed Ctrl-C.
        """
        self._checkpointer.up_to_date = False
        self.check()
        if self._checkpointer.due(evaluated=evaluated):
            self._checkpointer.save()

    def check(self) -> None:
        """Save the run and raise KeyboardInterrupt, where the user pressed Ctrl-C. Call it only between
        two steps.
        """
        if self.interruption.asked:
            self._checkpointer.save()
            raise KeyboardInterrupt

    def save(self) -> None:
        """Save a checkpoint now."""
        self._checkpointer.save()

    def note(self, text: str, **facts: Any) -> None:
        """Tell the user, and record the same as plain values."""
        self.recorder.noted(text, **facts)

    def tell(self, task: str, bad: Sequence[BadRow], notes: Sequence[str]) -> None:
        """Record the rows of a task that are left out, and tell the user its `notes`."""
        self.recorder.left_out(task, bad)
        for text in notes:
            self.note(text)

    @contextmanager
    def storing(self, workspace: Workspace) -> Iterator[None]:
        """While the results are stored. The end of the training is saved before, so Ctrl-C stops at
        once. Raises OnebaseError where the disk refuses; the run can then be resumed.
        """
        if not self._checkpointer.up_to_date:
            self._checkpointer.save()
        self.interruption.restore()
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.ending, self.summary = "interrupted", {"reason": str(error)}
            safe = self._checkpointer.up_to_date
            raise _not_stored(self.run, workspace, error, safe=safe) from error


@contextmanager
def run_session(
    config: dict[str, Any],
    base: Base,
    workspace: Workspace,
    seed: int,
    *,
    earlier: Run | None = None,
    observer: Observer | None = None,
    save_seconds: float = SAVE_SECONDS,
    save_limit: int = SAVE_LIMIT,
    resumable: bool = True,
) -> Iterator[RunSession]:
    """A new run of `config`, or the `earlier` one. While entered, this process holds its lock, torch's
    random state is the run's own, and Ctrl-C ends the current step.

    At the end summary.json says how the run ended: as `ending` says, or finished, unless an error
    passes. Raises Interrupted after Ctrl-C; unless the run is not `resumable`, it can be resumed then,
    and after any error, from its last checkpoint.
    """
    run = earlier or Run.create(workspace, config)
    recorder = RunRecorder(run, observer, by_task="jobs" in config or "compare" in config)
    checkpointer = Checkpointer(
        run, config, recorder, base.device, save_seconds=save_seconds, save_limit=save_limit
    )
    interruption = Interruption()
    session = RunSession(run, recorder, checkpointer, interruption, resumed=earlier is not None)
    devices = [base.device] if base.device.type == "cuda" else []
    with run.hold(), torch.random.fork_rng(devices=devices):
        # For what draws from torch itself, such as the dropout inside a whole model.
        torch.manual_seed(seed)
        try:
            with interruption:
                yield session
            session.ending = session.ending or "finished"
        except KeyboardInterrupt as stop:
            session.ending, session.summary = "interrupted", {}
            raise _interrupted(run, workspace, resumable=resumable) from stop
        finally:
            if session.ending is None:
                session.ending = "failed"
                session.summary = {"resumable": True} if resumable else {}
            if session.restored:  # else the summary of the last session stays
                with suppress(OSError):  # a full disk: a run without a summary is interrupted
                    run.finish(session.ending, {"seconds": session.seconds, **session.summary})
            recorder.finished(session.ending)
        with suppress(OSError):
            checkpointer.keep_one()


def _interrupted(run: Run, workspace: Workspace, *, resumable: bool) -> Interrupted:
    fact = say(f"Run {run.id} was interrupted.", f"训练 {run.id} 已中断。")
    if not resumable:
        return Interrupted(fact, say("Start it again.", "请重新开始。"))
    command = resume_command(run, workspace)
    return Interrupted(fact, say(f"Continue with: {command}", f"继续训练：{command}"))


def _not_stored(run: Run, workspace: Workspace, error: Exception, *, safe: bool) -> OnebaseError:
    reason = getattr(error, "strerror", None) or str(error)
    command = resume_command(run, workspace)
    fact = say(
        f"The result of run {run.id} can't be stored: {reason}.",
        f"无法保存训练 {run.id} 的结果：{reason}。",
    )
    if safe:
        fact += say(" It is safe in the run's checkpoint.", "结果保留在该训练的检查点中。")
    return OnebaseError(
        fact,
        say(
            f"Free some space on the disk of {workspace.root}, then run: {command}",
            f"请清理 {workspace.root} 所在磁盘的空间，然后运行：{command}",
        ),
    )
