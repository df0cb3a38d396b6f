"""Going on with a run that was interrupted."""

from typing import Any

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.render_date import moment_of
from onebase.runs.run import Run, RunStore
from onebase.training.execution import execute
from onebase.training.job_state import Learner
from onebase.training.loop import Watcher
from onebase.training.run_config import base_of, jobs_of, request_of, require_same


def resume(
    id: str,
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    watcher: Watcher | None = None,
) -> list[StoredAdapter]:
    """Go on with the run `id` (or the beginning of one) from its newest good checkpoint, to the
    same adapters that it would have left uninterrupted.

    Raises UsageError for a run that is unknown, ended or still running, and where its data, its
    settings or its base are no longer the same; else as `train`.
    """
    workspace = workspace or Workspace()
    run = resumable_run(workspace, id)
    if base is None:
        name, precision = wanted_base(run)
        base = Base.load(name, precision=precision)
    config = run.config
    try:
        jobs = jobs_of(config)
    except (KeyError, TypeError) as error:
        raise _incomplete(run, error) from error
    moment = moment_of(config)
    learners = [Learner(job, base, moment=moment) for job in jobs]
    now = request_of(base, learners)
    require_same(run.id, config, now)
    return execute(run, workspace, base, learners, now, watcher, resumed=True)


def resumable_run(workspace: Workspace, id: str) -> Run:
    """The run `id`, which can go on. Raises UsageError."""
    run = RunStore(workspace).get(id)
    if run.resumable:
        return run
    status = run.status
    if status == "running" or run.held:
        raise UsageError(
            say(f"Run {run.id} is still running.", f"训练 {run.id} 仍在运行。"),
            say(
                "Wait for it, or stop it with Ctrl-C first.", "请等待其结束，或先用 Ctrl-C 停止它。"
            ),
        )
    if run.is_race:
        raise UsageError(
            say(
                f"Run {run.id} is a race: it does not go on.",
                f"训练 {run.id} 是一次竞赛，无法继续。",
            ),
            say(
                "Start it again with onebase race; what Ctrl-C left of it is stored already.",
                "请用 onebase race 重新开始；Ctrl-C 时的最佳结果已经保存。",
            ),
        )
    raise UsageError(
        say(
            f"Run {run.id} came to its end ({status}): there is nothing to go on with.",
            f"训练 {run.id} 已结束（{status}），没有可继续的内容。",
        ),
        say(
            "Train again for a new version; onebase runs list shows what was interrupted.",
            "请重新训练以得到新版本；onebase runs list 会列出已中断的训练。",
        ),
    )


def interrupted_run(workspace: Workspace, config: dict[str, Any]) -> Run | None:
    """The newest run that was asked for the same, if it can go on."""
    for run in reversed(RunStore(workspace).list()):
        # The text alone tells: to read every run's YAML would take seconds.
        if config["identity"].encode() in (run.path / "config.yaml").read_bytes():
            return run if run.resumable else None
    return None


def wanted_base(run: Run) -> tuple[str, str]:
    """The base that a run is on, and its precision. Raises CorruptFileError."""
    try:
        return base_of(run.config)
    except (KeyError, TypeError) as error:
        raise _incomplete(run, error) from error


def _incomplete(run: Run, error: Exception) -> CorruptFileError:
    file = run.path / "config.yaml"
    return CorruptFileError(
        say(f"{file} is incomplete: {error} is missing.", f"{file} 不完整：缺少 {error}。"),
        say("Put back a copy of it, or train anew.", "请从备份恢复该文件，或重新训练。"),
    )
