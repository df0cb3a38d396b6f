"""Carrying a run out, from where it stands to its stored adapters, and saying how it ended."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.checkpointer import RunKeeper
from onebase.runs.interruption import Interrupted, Interruption
from onebase.runs.recorder import RunRecorder
from onebase.runs.run import Ending, Run
from onebase.training.job_state import Learner
from onebase.training.loop import Watcher, base_losses, train_together
from onebase.training.stored_result import store_once


def execute(
    run: Run,
    workspace: Workspace,
    base: Base,
    learners: Sequence[Learner],
    config: dict[str, Any],
    watcher: Watcher | None,
    *,
    resumed: bool,
) -> list[StoredAdapter]:
    """Train the learners to their ends and store each as a new version.

    Whatever ends it early leaves the run as its last checkpoint holds it, to be resumed. Raises
    Interrupted, UsageError where another process is at the run or what it was asked for has
    changed, and OnebaseError when an adapter can't be stored or a job left nothing to store.
    """
    recorder, interruption = RunRecorder(run, watcher), Interruption()
    keeper = RunKeeper(run, learners, config, recorder, interruption)
    on_gpu = [base.device] if base.device.type == "cuda" else []
    with run.hold(), torch.random.fork_rng(devices=on_gpu):
        # For what draws from torch itself, such as the dropout inside a whole model.
        torch.manual_seed(learners[0].job.seed)
        if resumed:
            keeper.restore()
        run.reopen()
        ending: Ending = "failed"
        outcome: dict[str, Any] = {"resumable": True}
        try:
            with interruption:
                _learn(base, learners, recorder, keeper)
            lost = [one.job.task for one in learners if one.diverged and not one.best_step]
            try:
                stored = _store(run, workspace, base, learners, keeper)
            except (OSError, SafetensorError) as error:
                ending, outcome = "interrupted", {"reason": str(error)}
                raise _not_stored(run, workspace, error) from error
            ending = "failed" if lost else "finished"
            outcome = {"adapters": [summary(item) for item in stored], "diverged": lost}
        except KeyboardInterrupt as stop:
            ending, outcome = "interrupted", {}
            raise _interrupted(run, workspace) from stop
        finally:
            with suppress(OSError):  # a full disk: without a word of its end, it is interrupted
                run.finish(ending, {"seconds": keeper.seconds, **outcome})
        with suppress(OSError):
            keeper.finish()
    if lost:
        raise _nothing_kept(lost, stored)
    return stored


def _learn(
    base: Base, learners: Sequence[Learner], recorder: RunRecorder, keeper: RunKeeper
) -> None:
    for learner in learners:
        for text in learner.notes:
            recorder.noted(f"{learner.job.task}: {text}", task=learner.job.task)
    if keeper.base_losses is None:
        losses = base_losses(base, learners, keeper.check)
        recorder.base_judged(losses)
        keeper.base_losses = losses
    train_together(learners, recorder, keeper)
    keeper.close()


def _store(
    run: Run, workspace: Workspace, base: Base, learners: Sequence[Learner], keeper: RunKeeper
) -> list[StoredAdapter]:
    store, before = AdapterStore(workspace), keeper.base_losses or {}
    return [
        store_once(store, base, run, learner, before.get(learner.job.task))
        for learner in learners
        if learner.best_step or not learner.diverged
    ]


def summary(adapter: StoredAdapter) -> dict[str, Any]:
    """A stored adapter as `onebase train --json` shows it."""
    metrics = adapter.record["metrics"]
    return {
        "task": adapter.task,
        "version": adapter.version,
        "method": adapter.record["method"],
        "path": str(adapter.path),
        **metrics,
    }


def resume_command(run: Run, workspace: Workspace) -> str:
    """The command that goes on with the run."""
    return f"onebase resume {run.id}{workspace.option}"


def _interrupted(run: Run, workspace: Workspace) -> Interrupted:
    command = resume_command(run, workspace)
    return Interrupted(
        say(f"Run {run.id} was interrupted.", f"训练 {run.id} 已中断。"),
        say(f"Go on with: {command}", f"继续训练：{command}"),
    )


def _not_stored(run: Run, workspace: Workspace, error: Exception) -> OnebaseError:
    reason = getattr(error, "strerror", None) or str(error)
    command = resume_command(run, workspace)
    return OnebaseError(
        say(
            f"What run {run.id} has learned can't be stored: {reason}. It is kept in the run's "
            "checkpoint.",
            f"无法保存训练 {run.id} 的结果：{reason}。结果保留在该训练的检查点中。",
        ),
        say(
            f"Make room on the disk of {workspace.root}, then: {command}",
            f"请清理 {workspace.root} 所在磁盘的空间，然后运行：{command}",
        ),
    )


def _nothing_kept(lost: Sequence[str], stored: Sequence[StoredAdapter]) -> OnebaseError:
    names = ", ".join(lost)
    kept = ", ".join(item.name for item in stored)
    return OnebaseError(
        say(
            f"The loss of {names} exploded or was no longer finite before its first evaluation, so "
            "there is nothing of it to keep.",
            f"{names} 的损失在第一次评估之前就已发散或不是有限值，没有可保留的结果。",
        )
        + (say(f" Stored: {kept}.", f"已保存：{kept}。") if kept else ""),
        say("Lower its learning_rate and train it again.", "请减小 learning_rate 后重新训练。"),
    )
